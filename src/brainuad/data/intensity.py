"""Intensities: smoothing and scaling, as the paper's loader does them (arrays in, arrays out)."""

from __future__ import annotations

import numpy as np

from brainuad.data.sampling import occupied_box
from brainuad.errors import ScanFault

_ZERO = (-0.005, 0.1)  # of the range: ringing below, noise of air above; a background there is 0
_EVEN = 0.05  # of the range: how much the faces of a scan differ where they show background only
_TIME_STEP = 0.125  # of curvature flow, as published
_CLEARLY = 0.1  # of the range: what is that far below the background is no noise and no ringing
_MOST_BELOW = 0.05  # of what is clearly no background
_FAR, _MOST_FAR_BELOW = 0.5, 0.001  # the same further below, where neither noise nor ringing reaches


def curvature_flow(array: np.ndarray, *, iterations: int = 3) -> np.ndarray:
    """Smooth along, not across, the edges of an ``(X, Y, Z)`` image; voxels count as 1 mm.

    Sethian, *Level Set Methods*, 1996, as implemented by ITK's ``CurvatureFlowImageFilter``.
    """
    if iterations == 0:
        return np.asarray(array, dtype=np.float32)
    import SimpleITK as sitk  # takes a while, and nothing else here needs it

    smooth = np.array(array, dtype=np.float32)
    # A constant does not flow, and every iteration reaches one voxel further: beyond this box nothing changes.
    reach = iterations + 1
    box = tuple(slice(max(part.start - reach, 0), part.stop + reach) for part in occupied_box(smooth != smooth.flat[0]))
    flowed = sitk.CurvatureFlow(sitk.GetImageFromArray(smooth[box]), timeStep=_TIME_STEP, numberOfIterations=iterations)
    smooth[box] = sitk.GetArrayFromImage(flowed)
    return smooth


def on_zero(array: np.ndarray) -> np.ndarray:
    """Shift a scan, ``(X, Y, Z)`` float32, so that what surrounds the head or brain is 0 and tissue is above it.

    All that follows counts on that: brains are cut out by zeros, and bias is divided out. A scan whose background is 0
    already, ringing and noise apart, is returned as it is; one of [-1, 1] or a z-scored head is shifted.

    Raises:
        ScanFault: More than a little lies below the background, as where the brain alone was standardised, or unsigned
            numbers were read as signed. No shift brings that back.
    """
    faces = np.concatenate([array.take((0, -1), axis).ravel() for axis in range(3)])
    if array.min() >= 0 and not np.median(faces):
        return array
    darkest, brightest = (float(value) for value in np.percentile(array[::2, ::2, ::2], (0.5, 99.5)))
    low, level, high = (float(value) for value in np.percentile(faces, (25, 50, 75)))
    span = max(brightest, level) - min(darkest, level)
    if not span:  # one value
        return array
    if high - low > _EVEN * span:  # tissue reaches the faces: the background is below zero, or not seen
        level = min(darkest, 0.0)
    if _ZERO[0] * span <= level <= _ZERO[1] * span:
        level = 0.0
    away = array - np.float32(level)
    below, far = (int((away < -distance * span).sum()) for distance in (_CLEARLY, _FAR))
    tissue = max(below + int((away > _CLEARLY * span).sum()), 1)
    if below > _MOST_BELOW * tissue or far > _MOST_FAR_BELOW * tissue:
        fault = f"has {below / tissue:.1%} of its tissue below its background of {level:.4g}: it looks standardised"
        raise ScanFault(f"{fault}, or its unsigned numbers are read as signed", "Give the original scan")
    return away if level else array


def scale_to_percentiles(array: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Clip ``(X, Y, Z)`` intensities to the 1st and 99th percentile inside a bool brain mask; scale to [0, 1].

    Raises:
        ValueError: The mask is empty, or the two percentiles coincide (a constant image).
    """
    if not mask.any():
        raise ValueError("the brain mask is empty")
    floor, ceiling = np.percentile(array[mask], (1.0, 99.0))
    if not ceiling > floor:
        raise ValueError(f"the image is constant inside the brain mask (value {floor:g})")
    return np.clip((array - floor) / (ceiling - floor), 0.0, 1.0).astype(np.float32)
