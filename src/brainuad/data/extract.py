"""Bias-field correction by N4."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from brainuad.data.frame import to_sitk
from brainuad.data.volume import Volume


def correct_bias(volume: Volume, mask: np.ndarray, *, working_spacing: float = 6.0, iterations: int = 100) -> np.ndarray:
    """Divide out the smooth multiplicative bias field inside the brain (N4, Tustison et al. 2010).

    Four levels, tolerance 5e-4, as published. The field is smooth, so it is estimated on a grid of about
    ``working_spacing`` mm and evaluated on the scan's own.

    Args:
        volume: Brain-extracted scan with positive intensities in the brain.
        mask: ``(X, Y, Z)`` bool brain mask.
        working_spacing: Grid of the estimate in mm.
        iterations: Most iterations a level.

    Returns:
        ``(X, Y, Z)`` float32, corrected, zero outside the mask.
    """
    # N4 works on logarithms: values at or below zero (cubic interpolation undershoots) would dominate the fit.
    positive = mask & (volume.array > 0)
    image = to_sitk(volume)
    inside = sitk.Cast(to_sitk(volume.with_array(positive)) > 0.5, sitk.sitkUInt8)
    shrink = [max(1, round(working_spacing / spacing)) for spacing in volume.spacing]
    correction = sitk.N4BiasFieldCorrectionImageFilter()
    correction.SetMaximumNumberOfIterations([iterations] * 4)
    correction.SetConvergenceThreshold(5e-4)
    correction.Execute(sitk.Shrink(image, shrink), sitk.Shrink(inside, shrink))
    log_field = sitk.GetArrayFromImage(correction.GetLogBiasFieldAsImage(image)).transpose(2, 1, 0)
    return np.where(mask, volume.array / np.exp(log_field), 0).astype(np.float32)
