"""Resampling between grids whose axes run parallel: one matrix product an axis."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from scipy import ndimage

NEGLIGIBLE = 1e-15  # of a weight, beside others of about 1 in float32


def sample_axes(
    array: np.ndarray,
    steps: Sequence[float] | np.ndarray,
    starts: Sequence[float] | np.ndarray,
    shape: Sequence[int],
    *,
    order: int,
    mode: str,
    sigmas: Sequence[float] | np.ndarray = (0.0, 0.0, 0.0),
) -> np.ndarray:
    """Sample an array where output voxel k lies at input position ``steps * k + starts``, along each axis.

    It gives what ``scipy.ndimage`` gives (a Gaussian filter, then ``affine_transform`` with a diagonal matrix) in an
    eighth of the time: both are linear and work along one axis after the other, so that along each they are a matrix,
    which is found by applying them to the unit vectors.

    Args:
        array: ``(X, Y, Z)`` float32.
        steps: Input voxels from one output voxel to the next; negative where the axes run against each other.
        starts: Input position of the first output voxel.
        shape: Of the output.
        order: Of the spline: 1 or 3.
        mode: What lies outside, as in ``affine_transform``: "constant" (zeros) or "mirror".
        sigmas: Standard deviations in input voxels of a Gaussian that the array is smoothed with first.

    Returns:
        ``shape`` float32.
    """
    x, y, z = (
        _operator(array.shape[axis], steps[axis], starts[axis], shape[axis], sigmas[axis], order, mode)
        for axis in range(3)
    )
    # A brain is a third of its scan, and zeros around it add nothing.
    box = occupied_box(array)
    x, y, z = (operator[:, part] for operator, part in zip((x, y, z), box, strict=True))
    array = np.ascontiguousarray(array[box], dtype=np.float32)
    # z and y are a product a sagittal plane, x is one; where a grid becomes finer, what lies between is small.
    array = np.matmul(y, np.matmul(array, z.T))
    return (x @ array.reshape(len(array), -1)).reshape(shape[0], *array.shape[1:])


def occupied_box(array: np.ndarray) -> tuple[slice, slice, slice]:
    """Return the box of an ``(X, Y, Z)`` array that holds all that is not zero, a voxel at least."""
    plane: np.ndarray = np.logical_or.reduce(array, axis=0)
    held = (array.any(axis=(1, 2)), plane.any(axis=1), plane.any(axis=0))
    x, y, z = (np.flatnonzero(line) if line.any() else np.zeros(1, int) for line in held)
    return slice(x[0], x[-1] + 1), slice(y[0], y[-1] + 1), slice(z[0], z[-1] + 1)


@lru_cache(maxsize=32)  # the maps of a scan take the same three, and many scans of a cohort
def _operator(size: int, step: float, start: float, length: int, sigma: float, order: int, mode: str) -> np.ndarray:
    """Return the matrix ``(length, size)`` of what happens along one axis."""
    units = np.eye(size)
    if sigma > 0:
        units = ndimage.gaussian_filter1d(units, sigma, axis=0, mode="constant")
    matrix: np.ndarray = np.apply_along_axis(
        ndimage.affine_transform,
        0,
        units,
        [[step]],  # a bare [step] would take SciPy's way of zooming, which rounds positions elsewhere
        offset=start,
        output_shape=(length,),
        order=order,
        mode=mode,
    )
    # A spline's weights fade for ever, and products with numbers below float32's normal range take ten times as long.
    matrix[np.abs(matrix) < NEGLIGIBLE] = 0
    return matrix.astype(np.float32)
