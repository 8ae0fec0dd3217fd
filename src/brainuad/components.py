"""Connected components of binary volumes."""

from __future__ import annotations

import cc3d
import numpy as np
from scipy import ndimage

OUTLINE = 0.4  # of the peak; PET outlines tumours at 41 % of theirs (Boellaard et al. 2015, EANM guidelines)


def components(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the 26-connected components of a ``(X, Y, Z)`` bool mask as labels from 1, and their number."""
    if mask.shape.count(1) > 1:  # cc3d reserves too few labels for a line of voxels
        labels, count = components(np.pad(mask, 1))
        return labels[1:-1, 1:-1, 1:-1], count
    labels, count = cc3d.connected_components(mask, connectivity=26, return_N=True)
    return labels, int(count)


def outlined(map: np.ndarray, threshold: float) -> tuple[np.ndarray, int]:
    """Return the regions of a map that stand out, as labels from 1, and their number.

    Where maps are smooth, a high peak lifts all around it above any fixed threshold. So of each 26-connected region
    above the threshold only the voxels above 40 % of its peak are left, and their components are the regions: two
    tumours that a halo joined are two again. What is less than 40 % of a peak that it is joined to is not listed.

    Args:
        map: ``(X, Y, Z)``.
        threshold: Voxels with a greater value may belong to a region.
    """
    labels, count = components(map > threshold)
    if not count:
        return labels, 0
    inside = labels > 0  # SciPy sorts all that it is given, and this is a hundredth of a scan
    peaks = np.append(0.0, ndimage.maximum(map[inside], labels[inside], np.arange(1, count + 1)))
    return components(inside & (map > OUTLINE * peaks[labels]))
