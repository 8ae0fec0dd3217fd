"""The brain in a scan: its mask, and correction of the bias field inside it by N4."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from brainuad.data.frame import itk_fault, one_itk_thread, to_sitk
from brainuad.data.volume import Volume

_PARCELLATION_CLOSING = 6.0  # mm: parcellations leave out the sulci, which brain extraction keeps


def brain_mask(image: Volume, given: Volume | None = None) -> np.ndarray:
    """Return the given mask with closed sulci, or where an extracted image is not background.

    Args:
        image: The scan; brain-extracted where no mask is given.
        given: Brain mask on the same grid, above 0 in the brain.

    Returns:
        ``(X, Y, Z)`` bool.

    Raises:
        ValueError: There is no mask and the scan is not brain-extracted, or the mask is empty.
    """
    if given is None:
        # Interpolated images ring around zero: half a percent of the bright end tells tissue from ringing.
        mask = image.array > 0.005 * np.percentile(image.array, 99.5)
        if mask.mean() > 0.6:
            raise ValueError("has no brain mask and does not look brain-extracted")
    else:
        mask = given.array > 0
    if not mask.any():
        raise ValueError("the brain mask is empty")
    radius = [max(1, round(_PARCELLATION_CLOSING / spacing)) for spacing in image.spacing]
    padded = np.pad(mask, [(r, r) for r in radius])
    far_out = ndimage.distance_transform_edt(~padded, sampling=image.spacing) > _PARCELLATION_CLOSING
    closed = ndimage.distance_transform_edt(~far_out, sampling=image.spacing) > _PARCELLATION_CLOSING
    inner = closed[tuple(slice(r, -r) for r in radius)]
    return ndimage.binary_fill_holes(inner | mask)


def on_same_grid(label: Volume, image: Volume) -> bool:
    """Whether a label has its image's shape and place (to a hundredth of a millimetre)."""
    same_shape = label.array.shape == image.array.shape
    return same_shape and np.allclose(label.affine, image.affine, atol=1e-2)


def correct_bias(
    volume: Volume, mask: np.ndarray, *, working_spacing: float = 6.0, iterations: int = 100
) -> np.ndarray:
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

    Raises:
        ValueError: N4 fails, as it does where the brain is empty or only a few voxels.
    """
    # N4 works on logarithms: values at or below zero (cubic interpolation undershoots) would dominate the fit.
    positive = mask & (volume.array > 0)
    image = to_sitk(volume)
    inside = sitk.Cast(to_sitk(volume.with_array(positive)) > 0.5, sitk.sitkUInt8)
    shrink = [max(1, round(working_spacing / spacing)) for spacing in volume.spacing]
    correction = sitk.N4BiasFieldCorrectionImageFilter()
    correction.SetMaximumNumberOfIterations([iterations] * 4)
    correction.SetConvergenceThreshold(5e-4)
    try:
        with one_itk_thread():
            correction.Execute(sitk.Shrink(image, shrink), sitk.Shrink(inside, shrink))
        log_field = sitk.GetArrayFromImage(correction.GetLogBiasFieldAsImage(image)).transpose(2, 1, 0)
    except RuntimeError as error:
        raise ValueError(f"bias correction failed ({itk_fault(error)})") from error
    return np.where(mask, volume.array / np.exp(log_field), 0).astype(np.float32)
