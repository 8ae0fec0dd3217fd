"""Thresholds over pooled scans from a small summary of each, with bootstrap intervals over subjects."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from brainuad.scoring.rarity import TAIL

STEPS = 1024
RESAMPLES = 2000
CONFIDENCE = 0.95
_HAIR = 1 + 1e-9  # 0.1 in floating point may be slightly less than 0.1


def pooled_thresholds(
    tails: np.ndarray,
    voxels: Sequence[int],
    fractions: Sequence[float],
    *,
    subjects: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> tuple[dict[float, float], dict[float, tuple[float, float]]]:
    """Return the map values that fractions of the voxels of all scans exceed, and their bootstrap intervals.

    Subjects, not voxels, are drawn with replacement, because voxels of one brain are alike. A pooled threshold lies
    between the lowest and the highest of the scans' thresholds. It is looked up on ``STEPS`` steps between them, so
    besides the error of `tail_quantiles` it may be too high by 0.1 % of their range. Memory grows by 8 kB a scan.

    Args:
        tails: ``(N, 1001)``, `tail_quantiles` of each scan.
        voxels: Voxels of each scan.
        fractions: Between 0.00001 and 1.
        subjects: Subject of each scan; all different by default.
        seed: Seed of the bootstrap of 2,000 samples.

    Returns:
        Threshold, and 95 % percentile interval, by fraction.
    """
    _, subject = np.unique(range(len(tails)) if subjects is None else list(map(str, subjects)), return_inverse=True)
    count = int(subject.max()) + 1
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    weights = np.vstack([np.ones(len(tails)), draws[:, subject]]) * np.asarray(voxels, dtype=np.float64)
    weights /= weights.sum(1, keepdims=True)
    thresholds, intervals = {}, {}
    for fraction in fractions:
        own = tails[:, np.searchsorted(-TAIL, -fraction * _HAIR)]
        steps = np.linspace(own.min(), own.max(), STEPS)
        above = np.stack([np.interp(steps, tail, TAIL) for tail in tails])
        crossings = steps[np.argmax(weights @ above <= fraction * _HAIR, axis=1)]
        thresholds[fraction] = float(crossings[0])
        low, high = np.quantile(crossings[1:], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        intervals[fraction] = (float(low), float(high))
    return thresholds, intervals
