"""Average precision and Dice against the width of SSIM, for each pathology; ensembles and ablations beside them."""

from brainuad.sweep.run import Ablations, run_sweep

__all__ = ["Ablations", "run_sweep"]
