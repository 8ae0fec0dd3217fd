"""Training of one model on one fold. The only room that knows Lightning."""

from brainuad.train.fit import fit

__all__ = ["fit"]
