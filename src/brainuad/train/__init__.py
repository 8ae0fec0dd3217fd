"""Training of one model on one fold. The only room that knows Lightning."""

from brainuad.train.checkpoint import seconds_used
from brainuad.train.fit import fit, is_complete, is_main_process

__all__ = ["fit", "is_complete", "is_main_process", "seconds_used"]
