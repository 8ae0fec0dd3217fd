"""Mean and standard deviation at every voxel of a grid, from sums over healthy scans that are registered to it."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

SMOOTHING_VOXELS = 1.0
SD_FLOOR = 0.25  # fraction of the brain's root mean square standard deviation
_ENOUGH = 0.5  # scans; voxels where fewer have brain get the whole brain's mean and deviation


def voxelwise_moments(count: np.ndarray, total: np.ndarray, squares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation over scans, ``(X, Y, Z)`` float32 each.

    Both are smoothed over a Gaussian neighbourhood of ``SMOOTHING_VOXELS``, because few scans give little information
    about one voxel, and registration is not exact. The deviation is at least ``SD_FLOOR`` times the brain's. Outside of
    every brain both are the whole brain's.

    Args:
        count: ``(X, Y, Z)``, number of scans with brain at each voxel.
        total: ``(X, Y, Z)``, sum of their values.
        squares: ``(X, Y, Z)``, sum of their squared values.
    """
    voxels = float(count.sum(dtype=np.float64))
    whole_mean = float(total.sum(dtype=np.float64)) / voxels
    whole_sd = np.sqrt(max(float(squares.sum(dtype=np.float64)) / voxels - whole_mean**2, 0))
    # Relative to the brain-wide mean, so that the variance does not cancel in float32.
    centred = total - count * np.float32(whole_mean)
    second = squares - 2 * np.float32(whole_mean) * total + count * np.float32(whole_mean**2)
    blurred = [ndimage.gaussian_filter(array, SMOOTHING_VOXELS, mode="constant") for array in (count, centred, second)]
    weight = np.maximum(blurred[0], np.float32(1e-6))
    mean = blurred[1] / weight
    variance = np.maximum(blurred[2] / weight - mean**2, 0)
    known = blurred[0] >= _ENOUGH
    typical = np.sqrt(np.average(variance, weights=count)) or 1.0
    sd = np.maximum(np.sqrt(variance), SD_FLOOR * typical)
    mean = np.where(known, mean + whole_mean, whole_mean)
    return mean.astype(np.float32), np.where(known, sd, whole_sd or 1.0).astype(np.float32)
