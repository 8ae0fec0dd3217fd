"""Distances between the surfaces of a prediction and of a lesion, in mm, as MONAI defines them.

A surface is the voxels of a set with a neighbour (of six) outside it, the edge of the array counting as outside. Each
surface voxel's distance is that to the nearest surface voxel of the other set, between voxel centres.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy import ndimage
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


@dataclass(frozen=True, eq=False)
class LesionSurface:
    """The surface of a scan's lesions, found once and compared with any number of predictions.

    Attributes:
        lesion: ``(X, Y, Z)`` bool, not empty.
        spacing: Voxel size in mm along each axis.
    """

    lesion: np.ndarray
    spacing: np.ndarray

    @cached_property
    def points(self) -> np.ndarray:
        """``(n, 3)`` indices of its voxels."""
        return surface(self.lesion)

    @cached_property
    def _nearest(self) -> np.ndarray:
        """``(3, X, Y, Z)`` indices of the surface voxel that is nearest to each voxel."""
        others = np.ones(self.lesion.shape, dtype=bool)
        others[tuple(self.points.T)] = False
        nearest: np.ndarray = ndimage.distance_transform_edt(
            others, sampling=self.spacing, return_distances=False, return_indices=True
        )
        return nearest

    def distances_from(self, points: np.ndarray) -> np.ndarray:
        """Return the distances in mm of voxels, given by their indices ``(n, 3)``, from the surface, ``(n,)``."""
        apart = (points - self._nearest[:, *points.T].T) * self.spacing
        distances: np.ndarray = np.sqrt((apart**2).sum(axis=1))
        return distances


def lesion_surface(lesion: Any, spacing: float | Sequence[float]) -> LesionSurface | None:
    """Return the surface of a scan's lesions; None without a lesion.

    Args:
        lesion: True in the lesion, (X, Y, Z); tensor or array.
        spacing: Voxel size in mm, one for all axes or one an axis.
    """
    truth = as_bool(lesion, "lesion")
    return LesionSurface(truth, np.broadcast_to(spacing, truth.ndim)) if truth.any() else None


def surface_distances(prediction: Any, lesions: LesionSurface | None) -> SurfaceDistances:
    """Return how far the surfaces of a prediction and of the lesions lie apart.

    Args:
        prediction: True where the method sees a lesion, (X, Y, Z); tensor or array.
        lesions: From `lesion_surface`.

    Raises:
        ValueError: The shapes differ.
    """
    called = as_bool(prediction, "prediction", None if lesions is None else lesions.lesion.shape)
    if lesions is None or not called.any():
        return SurfaceDistances(math.nan, math.nan)
    ours = surface(called)
    # Predictions are many, and most of their voxels far from a lesion, where a tree is slow: a map of the nearest
    # voxels pays for the lesions. Back a tree is faster than a map for each prediction.
    there = lesions.distances_from(ours)
    back = _tree(ours * lesions.spacing).query(lesions.points * lesions.spacing)[0]
    hd95 = max(np.percentile(there, 95), np.percentile(back, 95))
    return SurfaceDistances(float(hd95), float(np.concatenate([there, back]).mean()))


def _tree(points: np.ndarray) -> KDTree:
    """Return a tree of points that lie on a grid: there a plainly built one is searched in half the time."""
    return KDTree(points, leafsize=64, compact_nodes=False, balanced_tree=False)


def surface(mask: np.ndarray) -> np.ndarray:
    """Return the indices ``(n, axes)`` of a mask's voxels that have a face neighbour outside it."""
    box = bounding_box(mask)
    padded = np.zeros([part.stop - part.start + 2 for part in box], dtype=bool)
    padded[(slice(1, -1),) * mask.ndim] = mask[box]
    inside = padded.ravel()
    core = inside.copy()
    # strides in bytes are strides in voxels here: along the flat array every neighbour is one of them away
    for step in padded.strides:
        core[step:] &= inside[:-step]
        core[:-step] &= inside[step:]
    rim = np.unravel_index(np.flatnonzero(inside ^ core), padded.shape)
    return np.column_stack(rim) + [part.start - 1 for part in box]
