"""Average precision and Dice against the width of SSIM, for each pathology; ensembles and ablations beside them."""

from brainuad.sweep.cohort import run_sweep
from brainuad.sweep.run import Ablations

__all__ = ["Ablations", "run_sweep"]
