"""Connected components of binary volumes."""

from __future__ import annotations

import cc3d
import numpy as np


def components(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the 26-connected components of a ``(X, Y, Z)`` bool mask as labels from 1, and their number."""
    if mask.shape.count(1) > 1:  # cc3d reserves too few labels for a line of voxels
        labels, count = components(np.pad(mask, 1))
        return labels[1:-1, 1:-1, 1:-1], count
    labels, count = cc3d.connected_components(mask, connectivity=26, return_N=True)
    return labels, int(count)
