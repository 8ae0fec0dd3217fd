"""Mass effect: a smooth, invertible displacement that pushes tissue away from a point."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

HELD_MM = 8.0  # depth below the surface from which on the skull has no effect
MIN_JACOBIAN = 0.02  # determinant below which a displacement counts as folding


def push(
    centre: np.ndarray, radius: float, strength: float, from_edge: np.ndarray, spacing: tuple[float, float, float]
) -> np.ndarray:
    """Push tissue radially away from a point, and hold it at the brain's surface, as the skull does.

    The displacement is ``r / radius * exp((1 - (r / radius)**2) / 2)`` of ``strength * radius``: largest at ``radius``.
    It is weakened until it folds nowhere.

    Args:
        centre: A voxel.
        radius: In mm.
        strength: Largest displacement, as a fraction of ``radius`` (below 0.6, or the centre itself would fold).
        from_edge: ``(X, Y, Z)`` depth below the brain's surface in mm, 0 outside.
        spacing: In mm.

    Returns:
        ``(3, X, Y, Z)`` float32 displacement in voxels: the tissue at ``x`` comes from ``x - displacement``.
    """
    steps = np.asarray(spacing, np.float32)[:, None, None, None]
    grid = np.indices(from_edge.shape, np.float32)
    away = (grid - np.asarray(centre, np.float32)[:, None, None, None]) * steps
    distance = np.sqrt((away**2).sum(0)) / radius
    hold = np.clip(from_edge / HELD_MM, 0, 1)
    hold = hold * hold * (3 - 2 * hold)  # smoothstep: smooth at both ends
    displacement = away * (strength * np.exp((1 - distance**2) / 2) * hold) / steps
    while jacobian(displacement).min() < MIN_JACOBIAN:
        displacement = displacement * 0.8
    return displacement.astype(np.float32)


def jacobian(displacement: np.ndarray) -> np.ndarray:
    """Return the Jacobian determinant of ``x - displacement(x)``, ``(X, Y, Z)``: positive where nothing folds."""
    a, b, c = (-np.stack(np.gradient(part)) for part in displacement)  # rows of the matrix, less the identity
    for axis, row in enumerate((a, b, c)):
        row[axis] += 1
    return (a * np.cross(b, c, axis=0)).sum(0)


def warp(array: np.ndarray, displacement: np.ndarray, *, order: int = 3) -> np.ndarray:
    """Sample an ``(X, Y, Z)`` array at ``x - displacement(x)``; voxels that move less than 1 % of one are copied."""
    array = np.asarray(array, np.float32)
    moved = np.sqrt((displacement**2).sum(0)) > 0.01
    if not moved.any():
        return array.copy()
    places = np.argwhere(moved).T - displacement[:, moved]
    result = array.copy()
    result[moved] = ndimage.map_coordinates(array, places, order=order, mode="nearest")
    return result
