"""Intensities: smoothing and scaling, as the paper's loader does them (arrays in, arrays out)."""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def curvature_flow(array: np.ndarray, *, iterations: int = 3, time_step: float = 0.125) -> np.ndarray:
    """Smooth along, not across, the edges of an ``(X, Y, Z)`` image; voxels count as 1 mm.

    Sethian, *Level Set Methods*, 1996, as implemented by ITK's ``CurvatureFlowImageFilter``.
    """
    if iterations == 0:
        return np.asarray(array, dtype=np.float32)
    import SimpleITK as sitk  # takes a while, and nothing else here needs it

    smooth = np.array(array, dtype=np.float32)
    varied = ndimage.find_objects((smooth != smooth.flat[0]).astype(np.uint8))
    if varied:
        # A constant does not flow, and every iteration reaches one voxel further: beyond this box nothing changes.
        reach = iterations + 1
        box = tuple(slice(max(part.start - reach, 0), part.stop + reach) for part in varied[0])
        image = sitk.GetImageFromArray(smooth[box])
        flowed = sitk.CurvatureFlow(image, timeStep=time_step, numberOfIterations=iterations)
        smooth[box] = sitk.GetArrayFromImage(flowed)
    return smooth


def scale_to_percentiles(
    array: np.ndarray, mask: np.ndarray, *, low: float = 1.0, high: float = 99.0
) -> np.ndarray:
    """Clip to two percentiles of the voxels inside the brain mask and scale to [0, 1].

    Args:
        array: ``(X, Y, Z)`` intensities in any unit.
        mask: ``(X, Y, Z)`` bool, at least one voxel set.
        low: Percentile that becomes 0.
        high: Percentile that becomes 1.

    Raises:
        ValueError: The mask is empty, or the two percentiles coincide (a constant image).
    """
    if not mask.any():
        raise ValueError("the brain mask is empty")
    floor, ceiling = np.percentile(array[mask], (low, high))
    if not ceiling > floor:
        raise ValueError(f"the image is constant inside the brain mask (value {floor:g})")
    scaled = (array - floor) / (ceiling - floor)
    return np.clip(scaled, 0.0, 1.0).astype(np.float32)
