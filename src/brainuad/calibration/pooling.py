"""Thresholds over pooled scans from a small summary of each, and what they would be with other scans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

TAIL = 10.0 ** (-np.arange(1001) / 200)  # fractions of voxels above, 1 to 0.00001
STEPS = 1024
RESAMPLES = 2000
CONFIDENCE = 0.95


def tail_quantiles(values: Any) -> np.ndarray:
    """Return the smallest values that no more than the fractions ``TAIL`` of all values exceed.

    Args:
        values: Map values in one brain, any shape, not empty.

    Returns:
        ``(1001,)`` float32, ascending: 4 kB that stand for a scan. A fraction read from them lies between two
        neighbours in ``TAIL``, so it is at most 1.2 % of itself off (0.01 may be 0.00988 to 0.01012).
    """
    ordered = np.sort(np.asarray(values, dtype=np.float32), axis=None)
    allowed = np.floor(np.round(TAIL * ordered.size, 6)).astype(np.int64)
    return ordered[np.maximum(ordered.size - 1 - allowed, 0)]


def pooled_thresholds(
    quantiles: np.ndarray, voxels: Sequence[int], fractions: Sequence[float], *, seed: int = 0
) -> tuple[dict[float, float], dict[float, tuple[float, float]]]:
    """Return the map values that fractions of the voxels of all scans exceed, and their bootstrap intervals.

    Scans, not voxels, are drawn with replacement: voxels of one brain are alike. A pooled threshold lies between the
    lowest and the highest of the scans' own; it is looked up on ``STEPS`` steps between them, so besides what
    `tail_quantiles` says it may be too high by 0.1 % of their range.

    Args:
        quantiles: ``(N, 1001)``, `tail_quantiles` of each scan.
        voxels: Voxels of each scan.
        fractions: Between 0.00001 and 1.
        seed: Seeds the bootstrap.

    Returns:
        Threshold and 95 % percentile interval by fraction.
    """
    weights = np.asarray(voxels, dtype=np.float64)
    draws = np.random.default_rng(seed).multinomial(
        len(weights), np.full(len(weights), 1 / len(weights)), RESAMPLES
    )
    drawn = np.vstack([np.ones(len(weights)), draws]) * weights
    drawn /= drawn.sum(1, keepdims=True)
    thresholds, intervals = {}, {}
    for fraction in fractions:
        own = quantiles[:, np.searchsorted(-TAIL, -fraction * (1 + 1e-9))]
        steps = np.linspace(own.min(), own.max(), STEPS)
        above = np.stack([np.interp(steps, scan, TAIL) for scan in quantiles])
        pooled = drawn @ above
        found = steps[np.argmax(pooled <= fraction * (1 + 1e-9), axis=1)]
        thresholds[fraction] = float(found[0])
        low, high = np.quantile(found[1:], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        intervals[fraction] = (float(low), float(high))
    return thresholds, intervals
