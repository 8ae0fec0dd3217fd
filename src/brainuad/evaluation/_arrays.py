"""What the measures take: tensors on any device and NumPy arrays."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor


def as_array(values: Any) -> np.ndarray:
    """Return a tensor or array as a NumPy array."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return np.asarray((values if values.dtype.itemsize != 2 else values.float()).numpy())
    return np.asarray(values)


def as_scores(values: Any, name: str) -> np.ndarray:
    """Return scores as float32, or float64 where they are integers or double.

    Raises:
        ValueError: There is a NaN among them.
    """
    array = as_array(values)
    if array.dtype.str[1:] not in ("f4", "f8"):
        array = array.astype(np.float32 if array.dtype == np.float16 else np.float64)
    if np.isnan(array).any():
        raise ValueError(f"{name} holds {int(np.isnan(array).sum())} NaN")
    return array


def as_bool(values: Any, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Return a mask as bools, true where it is not zero; one of bools is not copied.

    Raises:
        ValueError: It does not have the given shape.
    """
    array = as_array(values).astype(bool, copy=False)
    if shape is not None and array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}, expected {shape}")
    return array


def ratio(numerator: float, denominator: float) -> float:
    """Return a quotient, NaN where it is undefined."""
    return float(numerator / denominator) if denominator else math.nan


def bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """Return the smallest box that holds all true voxels; an empty one if there are none."""
    box = []
    for _ in range(mask.ndim):
        held = np.flatnonzero(mask.any(axis=tuple(range(1, mask.ndim))))
        box.append(slice(int(held[0]), int(held[-1]) + 1) if held.size else slice(0, 0))
        mask = np.logical_or.reduce(mask, axis=0)  # of the axes that are left
    return tuple(box)
