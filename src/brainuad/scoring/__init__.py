"""From a scan and its reconstructions to a map of what is unlike a healthy brain."""

import brainuad.scoring.features
import brainuad.scoring.mahalanobis  # noqa: F401  (registers it)
from brainuad.scoring.postprocess import drop_small, erode_brain, large_components, median_filter, postprocess
from brainuad.scoring.scores import score_maps
from brainuad.scoring.ssim import ssim_ensemble, ssim_maps

__all__ = [
    "drop_small",
    "erode_brain",
    "large_components",
    "median_filter",
    "postprocess",
    "score_maps",
    "ssim_ensemble",
    "ssim_maps",
]
