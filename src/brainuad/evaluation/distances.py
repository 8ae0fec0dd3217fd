"""Distances between the surfaces of a prediction and of a lesion, in mm, as MONAI defines them.

A surface is the voxels of a set with a neighbour (of six) outside it, the edge of the array counting as outside. Each
surface voxel's distance is that to the nearest surface voxel of the other set, between voxel centres.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial import KDTree

from brainuad.evaluation._arrays import as_bool, bounding_box


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances in mm between two surfaces; NaN if either set is empty.

    Attributes:
        hd95: 95th percentile of the Hausdorff distance: the larger of the two directions' 95th percentiles.
        assd: Average symmetric surface distance: the mean over the voxels of both surfaces.
    """

    hd95: float
    assd: float


def surface_distances(prediction: Any, lesion: Any, spacing: float | Sequence[float]) -> SurfaceDistances:
    """Return how far the surfaces of a prediction and a lesion lie apart.

    Args:
        prediction: True where the method sees a lesion, (X, Y, Z); tensor or array.
        lesion: True in the lesion, same shape.
        spacing: Voxel size in mm, one for all axes or one an axis.

    Raises:
        ValueError: The shapes differ.
    """
    truth = as_bool(lesion, "lesion")
    called = as_bool(prediction, "prediction", truth.shape)
    if not truth.any() or not called.any():
        return SurfaceDistances(math.nan, math.nan)
    ours, theirs = surface(called) * spacing, surface(truth) * spacing
    there, back = _tree(theirs).query(ours)[0], _tree(ours).query(theirs)[0]
    hd95 = max(np.percentile(there, 95), np.percentile(back, 95))
    return SurfaceDistances(float(hd95), float(np.concatenate([there, back]).mean()))


def _tree(points: np.ndarray) -> KDTree:
    """Return a tree of points that lie on a grid: there a plainly built one is searched in half the time."""
    return KDTree(points, leafsize=32, compact_nodes=False, balanced_tree=False)


def surface(mask: np.ndarray) -> np.ndarray:
    """Return the indices ``(n, axes)`` of a mask's voxels that have a face neighbour outside it."""
    box = bounding_box(mask)
    cropped = mask[box]
    core = cropped.copy()
    for axis in range(mask.ndim):
        whole, rest = np.moveaxis(cropped, axis, 0), np.moveaxis(core, axis, 0)  # views
        rest[:-1] &= whole[1:]
        rest[1:] &= whole[:-1]
        rest[0] = rest[-1] = False
    return np.argwhere(cropped & ~core) + [part.start for part in box]
