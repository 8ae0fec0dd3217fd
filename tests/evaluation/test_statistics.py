import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainuad.evaluation import Summary, summarise


def test_mean_deviation_and_interval():
    values = np.random.default_rng(0).normal(0.4, 0.1, 200)
    summary = summarise(values)
    assert summary.mean == pytest.approx(values.mean())
    assert summary.sd == pytest.approx(values.std(ddof=1))
    assert summary.n == 200
    # For many normal values the bootstrap agrees with the textbook's interval.
    half_width = 1.96 * summary.sd / math.sqrt(200)
    assert summary.low == pytest.approx(summary.mean - half_width, abs=0.1 * half_width)
    assert summary.high == pytest.approx(summary.mean + half_width, abs=0.1 * half_width)


def test_interval_covers_the_mean_as_often_as_promised():
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        summary = summarise(rng.exponential(1.0, 30), confidence=0.9, resamples=400, seed=trial)
        covered += summary.low <= 1.0 <= summary.high
    assert 0.82 <= covered / 200 <= 0.96


def test_wider_confidence_is_wider_and_seeds_repeat():
    values = np.random.default_rng(0).random(20)
    wide, narrow = summarise(values, confidence=0.99), summarise(values, confidence=0.5)
    assert wide.low < narrow.low < narrow.high < wide.high
    assert summarise(values, seed=3) == summarise(list(values), seed=3)


def test_undefined_values_are_left_out():
    assert summarise([0.2, math.nan, 0.5, 0.4]) == summarise([0.2, 0.5, 0.4])
    assert summarise([0.2, math.nan, 0.5]).n == 2


@pytest.mark.parametrize(
    ("values", "mean", "n"),
    [([], math.nan, 0), ([math.nan], math.nan, 0), ([0.5], 0.5, 1), ([math.nan, 1], 1, 1)],
)
def test_too_few_for_an_interval(values, mean, n):
    summary = summarise(values)
    np.testing.assert_equal(summary, Summary(mean, math.nan, n, math.nan, math.nan))


def test_equal_values():
    assert summarise([0.3] * 5) == Summary(0.3, 0.0, 5, 0.3, 0.3)


@settings(max_examples=30, deadline=None)
@given(values=st.lists(st.sampled_from([0.0, 0.1, 0.1 + 1e-15, 1.0]), min_size=2, max_size=6))
def test_no_values_make_it_warn_or_fail(values):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summary = summarise(values, resamples=99)
    assert summary.low <= summary.high
    assert min(values) - 1e-12 <= summary.low
    assert summary.high <= max(values) + 1e-12


def test_wrong_confidence():
    with pytest.raises(ValueError, match="got 95"):
        summarise([0.1, 0.2], confidence=95)
