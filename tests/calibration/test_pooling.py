"""Thresholds from tail quantiles, against ranks of all voxels and a bootstrap over whole arrays."""

from __future__ import annotations

import numpy as np
import pytest
from exact import false_positive_threshold
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from brainuad.calibration.pooling import pooled_thresholds
from brainuad.evaluation import FALSE_POSITIVE_FRACTIONS
from brainuad.scoring.rarity import TAIL, tail_quantiles

FINITE = st.floats(-10, 10, width=32)


def brains(count: int, seed: int = 0) -> list[np.ndarray]:
    """Scores of brains of different sizes, whose level differs from subject to subject; many zeros, as in maps."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        scores = rng.gamma(2, rng.uniform(0.08, 0.12), rng.integers(20_000, 30_000))
        found.append(np.where(rng.random(scores.size) < 0.3, 0, scores).astype(np.float32))
    return found


def pooled(scores: list[np.ndarray], **options: object) -> tuple[dict, dict]:
    tails = np.stack([tail_quantiles(values) for values in scores])
    return pooled_thresholds(tails, [values.size for values in scores], FALSE_POSITIVE_FRACTIONS, **options)


@settings(deadline=None, max_examples=50)
@given(hnp.arrays(np.float32, st.integers(1, 300), elements=FINITE))
def test_tail_quantiles_are_the_smallest_values_that_so_few_exceed(values: np.ndarray) -> None:
    tail = tail_quantiles(values)
    for fraction, value in zip(TAIL[::50], tail[::50], strict=True):
        assert (values > value).sum() <= round(fraction * values.size, 6)
        smaller = values[values < value]
        if smaller.size:
            assert (values > smaller.max()).sum() > round(fraction * values.size, 6)
    assert (np.diff(tail) >= 0).all()


def test_thresholds_are_those_of_all_voxels_within_the_error_that_is_stated() -> None:
    scores = brains(8)
    together = np.concatenate(scores)
    thresholds, _ = pooled(scores)
    for fraction, threshold in thresholds.items():
        assert (together > threshold).mean() == pytest.approx(fraction, rel=0.012)
        assert threshold == pytest.approx(false_positive_threshold(scores, fraction), rel=0.005)


def test_one_scan_has_its_own_threshold_and_no_spread() -> None:
    scores = brains(1)
    thresholds, intervals = pooled(scores)
    for fraction in FALSE_POSITIVE_FRACTIONS:
        assert thresholds[fraction] == pytest.approx(false_positive_threshold(scores, fraction), rel=0.005)
        assert intervals[fraction] == (thresholds[fraction], thresholds[fraction])


def test_ties_at_the_top_are_not_exceeded() -> None:
    scores = [np.repeat(np.float32([0, 0.5, 1]), 1000)] * 3
    thresholds, _ = pooled(scores)
    assert set(thresholds.values()) == {1.0}


def test_intervals_are_those_of_a_bootstrap_over_whole_arrays() -> None:
    scores = brains(6, seed=4)
    _, intervals = pooled(scores)
    rng = np.random.default_rng(1)
    drawn = []
    for _ in range(200):
        together = np.concatenate([scores[i] for i in rng.integers(6, size=6)])
        drawn.append(np.quantile(together, [1 - fraction for fraction in FALSE_POSITIVE_FRACTIONS]))
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    for i, (_, interval) in enumerate(intervals.items()):
        width = high[i] - low[i]
        assert interval == pytest.approx((low[i], high[i]), abs=0.15 * width)


def test_scans_of_one_subject_are_drawn_together() -> None:
    scores = brains(5, seed=2)
    once = pooled(scores, subjects=list("abcde"))
    twice = pooled(scores * 2, subjects=list("abcde") * 2)
    apart = pooled(scores * 2)
    assert twice == once
    assert np.ptp(apart[1][0.01]) < 0.9 * np.ptp(once[1][0.01])


def test_the_seed_is_all_that_chance_depends_on() -> None:
    scores = brains(5)
    assert pooled(scores, seed=3) == pooled(scores, seed=3)
    assert pooled(scores, seed=3)[1] != pooled(scores, seed=4)[1]
