"""Connected components of binary volumes."""

from __future__ import annotations

import cc3d
import numpy as np
from scipy import ndimage

OUTLINE = 0.5  # of the way from the threshold to the peak (docs/decisions.md)


def components(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the 26-connected components of a ``(X, Y, Z)`` bool mask as labels from 1, and their number."""
    if mask.shape.count(1) > 1:  # cc3d reserves too few labels for a line of voxels
        labels, count = components(np.pad(mask, 1))
        return labels[1:-1, 1:-1, 1:-1], count
    labels, count = cc3d.connected_components(mask, connectivity=26, return_N=True)
    return labels, int(count)


def outlined(map: np.ndarray, threshold: float) -> tuple[np.ndarray, int]:
    """Return the delineated regions of a map as labels from 1, and their number.

    In a smooth map a high peak raises its surroundings above any fixed threshold. So each 26-connected region above the
    threshold is reduced to the voxels that are more than halfway from the threshold to its peak, and the components of
    these are the regions. Two tumours joined by a halo become two regions. A part that stays below that, for a higher
    peak that it is connected to, is not listed.

    Args:
        map: ``(X, Y, Z)``.
        threshold: Voxels with a greater value may belong to a region.
    """
    labels, count = components(map > threshold)
    if not count:
        return labels, 0
    high = labels > 0  # a hundredth of a scan: the rest need not be looked at
    values, regions = map[high], labels[high]
    peaks = np.append(0.0, ndimage.maximum(values, regions, np.arange(1, count + 1)))
    high[high] = values > threshold + OUTLINE * (peaks[regions] - threshold)
    return components(high)
