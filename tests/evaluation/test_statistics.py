import itertools
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from brainuad.evaluation import (
    Ratio,
    ScanAuroc,
    Summary,
    by_subject,
    holm,
    paired_difference,
    paired_permutation_test,
    paired_ratio,
    scan_auroc,
    statistics,
    summarise,
)


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


@pytest.mark.parametrize("size", [5, 30, 158])
def test_interval_equals_scipy(size):
    values = np.random.default_rng(size).exponential(1.0, size)
    summary = summarise(values, seed=7, resamples=2000)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=2000, method="BCa", rng=np.random.default_rng(7)
    ).confidence_interval
    assert (summary.low, summary.high) == pytest.approx((expected.low, expected.high), rel=1e-9)


@pytest.mark.parametrize(
    ("draw", "truth"),
    [
        (lambda rng, size: rng.normal(0.4, 0.1, size), 0.4),
        (lambda rng, size: rng.beta(2, 6, size), 0.25),  # skewed, as average precision and Dice are
        (lambda rng, size: rng.beta(3, 7, size) - rng.beta(2, 8, size), 0.1),
    ],
    ids=["normal", "skewed", "difference"],
)
def test_interval_covers_the_mean_as_often_as_promised(draw, truth):
    rng = np.random.default_rng(1)
    trials = 2000
    intervals = [summarise(draw(rng, 50), resamples=2000, seed=trial % 4) for trial in range(trials)]
    covered = sum(interval.low <= truth <= interval.high for interval in intervals)
    assert 0.92 <= covered / trials <= 0.97


def test_memory_is_bounded_for_many_subjects(monkeypatch):
    values = np.random.default_rng(0).random(40)
    expected = summarise(values, resamples=3000)
    monkeypatch.setattr(statistics, "BLOCK", 40 * 500)
    blockwise = summarise(values, resamples=3000)
    assert blockwise != expected
    assert blockwise.low == pytest.approx(expected.low, abs=0.1 * (expected.high - expected.low))
    p = paired_permutation_test(values, values[::-1] + 0.05, resamples=3000)
    monkeypatch.undo()
    assert p == pytest.approx(paired_permutation_test(values, values[::-1] + 0.05, resamples=3000), abs=0.05)


def test_wider_confidence_is_wider_and_seeds_repeat():
    values = np.random.default_rng(0).random(20)
    wide, narrow = summarise(values, confidence=0.99), summarise(values, confidence=0.5)
    assert wide.low < narrow.low < narrow.high < wide.high
    assert summarise(values, seed=3) == summarise(list(values), seed=3)


def test_undefined_values_are_left_out():
    assert summarise([0.2, math.nan, 0.5, 0.4]) == summarise([0.2, 0.5, 0.4])
    assert summarise([0.2, math.nan, 0.5]).n == 2


@pytest.mark.parametrize(
    ("values", "mean", "n"), [([], math.nan, 0), ([math.nan], math.nan, 0), ([0.5], 0.5, 1), ([math.nan, 1], 1, 1)]
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


def test_paired_difference_is_the_summary_of_differences():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 30))
    assert paired_difference(a, b, seed=2) == summarise(a - b, seed=2)
    a[3], b[5] = math.nan, math.nan
    assert paired_difference(a, b).n == 28
    reverse = paired_difference(b, a)
    assert reverse.mean == -paired_difference(a, b).mean
    with pytest.raises(ValueError, match="30 values and 29"):
        paired_difference(a, b[1:])


def test_interval_of_a_ratio_equals_scipy():
    rng = np.random.default_rng(0)
    b = rng.beta(2, 6, 40)
    a = np.clip(1.6 * b + rng.normal(0, 0.1, 40), 0, 1)
    expected = stats.bootstrap(
        (a, b),
        lambda x, y, axis: x.mean(axis) / y.mean(axis),
        paired=True,
        n_resamples=20000,
        method="BCa",
        rng=np.random.default_rng(0),
    ).confidence_interval
    found = paired_ratio(a, b, resamples=20000)
    assert found.value == pytest.approx(a.mean() / b.mean())
    half = (expected.high - expected.low) / 2
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.03 * half)


def test_interval_of_a_ratio_covers_as_often_as_promised():
    rng = np.random.default_rng(3)
    trials = 1000
    covered = 0
    for trial in range(trials):
        b = rng.beta(2, 6, 40)
        found = paired_ratio(b + rng.beta(2, 6, 40), b, resamples=1000, seed=trial % 4)
        covered += found.low <= 2 <= found.high
    assert 0.92 <= covered / trials <= 0.97


@settings(max_examples=30, deadline=None)
@given(b=st.lists(st.sampled_from([0.01, 0.2, 0.5]), min_size=2, max_size=8), factor=st.sampled_from([0, 0.5, 3]))
def test_a_ratio_scales_and_a_constant_one_is_certain(b, factor):
    found = paired_ratio([factor * value for value in b], b, resamples=99)
    assert (found.value, found.low, found.high) == pytest.approx((factor, factor, factor))
    assert found.n == len(b)
    uneven = [value**2 for value in b]
    once = paired_ratio(uneven, b, resamples=99)
    # A power of two, so that rounding makes or breaks no ties.
    larger = paired_ratio([4 * value for value in uneven], b, resamples=99)
    assert (larger.value, larger.low, larger.high) == (4 * once.value, 4 * once.low, 4 * once.high)


def test_ratio_of_few_or_wrong_values():
    np.testing.assert_equal(paired_ratio([], []), Ratio(math.nan, 0, math.nan, math.nan))
    np.testing.assert_equal(paired_ratio([0.3, math.nan], [0.1, 0.2]), Ratio(0.3 / 0.1, 1, math.nan, math.nan))
    with pytest.raises(ValueError, match="above 0, the least is 0"):
        paired_ratio([0.1, 0.2], [0.1, 0.0])
    with pytest.raises(ValueError, match="2 values and 1"):
        paired_ratio([0.1, 0.2], [0.1])


@settings(max_examples=40, deadline=None)
@given(a=st.lists(st.sampled_from([0.0, 0.125, 0.25, 0.375, 0.75]), min_size=2, max_size=9), seed=st.integers(0, 999))
def test_exact_permutation_test_equals_scipy(a, seed):
    b = np.random.default_rng(seed).choice([0.0, 0.125, 0.25, 0.5], len(a))  # exact in binary: ties are ties
    if np.allclose(a, b):
        assert paired_permutation_test(a, b) == 1
        return
    expected = stats.permutation_test(
        (np.array(a), b),
        lambda x, y, axis: (x - y).mean(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=10**5,
    )
    assert paired_permutation_test(a, b) == pytest.approx(expected.pvalue)
    assert paired_permutation_test(b, a) == paired_permutation_test(a, b)


@pytest.mark.parametrize("shift", [0.0, 0.05, 0.2])
def test_drawn_permutations_agree_with_enumerated_ones(shift, monkeypatch):
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 14))
    exact = paired_permutation_test(a + shift, b)
    monkeypatch.setattr(statistics, "EXACT_UP_TO", 0)
    assert paired_permutation_test(a + shift, b) == pytest.approx(exact, abs=0.015)


@pytest.mark.parametrize("size", [12, 40])
def test_p_values_are_uniform_without_a_difference(size):
    rng = np.random.default_rng(0)
    p_values = [
        # skewed differences would be no null: a and b must be exchangeable
        paired_permutation_test(*rng.exponential(1.0, (2, size)), resamples=999, seed=trial % 4)
        for trial in range(800)
    ]
    assert stats.kstest(p_values, "uniform").pvalue > 0.01
    assert np.mean(np.array(p_values) <= 0.05) == pytest.approx(0.05, abs=0.02)


def test_permutation_test_of_few_or_equal_values():
    assert math.isnan(paired_permutation_test([], []))
    assert math.isnan(paired_permutation_test([math.nan], [0.1]))
    assert paired_permutation_test([0.3], [0.1]) == 1
    assert paired_permutation_test([0.3] * 40, [0.3] * 40) == 1
    assert paired_permutation_test([0.3] * 4, [0.1] * 4) == 2 / 2**4
    assert paired_permutation_test([0.9] * 40, [0.1] * 40) == 1 / 10001
    assert paired_permutation_test([0.1, math.nan, 0.4], [0, 0.2, 0.1]) == paired_permutation_test([0.1, 0.4], [0, 0.1])


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # 4 x .005, 3 x .01, 2 x .03, then .06 stays
        ([0.5, 0.6], [1.0, 1.0]),
        ([0.02], [0.02]),
        ([], []),
        ([0.01, math.nan, 0.04], [0.02, math.nan, 0.04]),
        ([0.0, 0.0, 1.0], [0.0, 0.0, 1.0]),
    ],
)
def test_holm_by_hand(p_values, adjusted):
    assert holm(p_values) == pytest.approx(adjusted, nan_ok=True)


@settings(max_examples=100, deadline=None)
@given(p_values=st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_keeps_the_order_and_lies_below_bonferroni(p_values):
    adjusted = holm(p_values)
    for (p, q), (other_p, other_q) in itertools.combinations(zip(p_values, adjusted, strict=True), 2):
        assert p > other_p or q <= other_q
        assert p < other_p or q >= other_q
    for p, q in zip(p_values, adjusted, strict=True):
        assert p <= q <= min(1, len(p_values) * p) + 1e-15
    assert holm(p_values[::-1]) == adjusted[::-1]


def test_holm_refuses_what_is_no_p_value():
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([0.1, 1.2])


def test_seeds_are_averaged_within_a_subject_first():
    subjects = ["b", "a", "b", "a", "c", "c"]
    values = [0.2, 0.5, 0.4, math.nan, math.nan, math.nan]
    means = by_subject(subjects, values)
    assert list(means) == ["b", "a", "c"]
    assert means == pytest.approx({"b": 0.3, "a": 0.5, "c": math.nan}, nan_ok=True)
    # Copies of a subject make no interval narrower.
    once = np.random.default_rng(0).random(20)
    thrice = by_subject(list(range(20)) * 3, [*once, *once, *once])
    assert summarise(thrice.values()).high == pytest.approx(summarise(once).high)
    with pytest.raises(ValueError, match="zip"):
        by_subject(["a"], [])


@settings(max_examples=30, deadline=None)
@given(
    anomalous=st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.9]), min_size=2, max_size=8),
    healthy=st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.8]), min_size=2, max_size=8),
)
def test_scan_auroc_equals_scikit_learn(anomalous, healthy):
    truth = [1] * len(anomalous) + [0] * len(healthy)
    figures = scan_auroc([*anomalous, math.nan], healthy, resamples=200)
    assert figures.value == pytest.approx(roc_auc_score(truth, anomalous + healthy))
    assert 0 <= figures.low <= figures.high <= 1
    assert (figures.anomalous, figures.healthy) == (len(anomalous), len(healthy))
    mirrored = scan_auroc(-np.array(anomalous), -np.array(healthy), resamples=200)
    assert mirrored.low == pytest.approx(1 - figures.high, abs=0.2)


def test_interval_of_scan_auroc_equals_scipy():
    rng = np.random.default_rng(0)
    anomalous, healthy = rng.normal(1, 1, 25), rng.normal(0, 1, 40)

    def area(x, y, axis):
        return (x[..., :, None] > y[..., None, :]).mean((-1, -2))

    expected = stats.bootstrap(
        (anomalous, healthy), area, n_resamples=20000, method="BCa", batch=500, rng=np.random.default_rng(0)
    ).confidence_interval
    figures = scan_auroc(anomalous, healthy, resamples=20000)
    assert (figures.low, figures.high) == pytest.approx((expected.low, expected.high), abs=0.005)


def test_interval_of_scan_auroc_covers_as_often_as_promised():
    rng = np.random.default_rng(2)
    truth = stats.norm.cdf(1 / math.sqrt(2))
    trials = 1000
    intervals = [
        scan_auroc(rng.normal(1, 1, 40), rng.normal(0, 1, 40), resamples=1000, seed=trial % 2)
        for trial in range(trials)
    ]
    covered = sum(interval.low <= truth <= interval.high for interval in intervals)
    assert 0.92 <= covered / trials <= 0.97


def test_scan_auroc_of_few_scans():
    nothing = scan_auroc([0.5], [])
    assert math.isnan(nothing.value)
    one = scan_auroc([0.5], [0.1, 0.7])
    np.testing.assert_equal(one, ScanAuroc(0.5, math.nan, math.nan, 1, 2))
    assert scan_auroc([0.8, 0.9], [0.1, 0.2]) == ScanAuroc(1.0, 1.0, 1.0, 2, 2)
