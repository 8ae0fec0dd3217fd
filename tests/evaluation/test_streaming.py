import io
import math

import numpy as np
import pytest
import torch
from exact import false_positive_threshold
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from brainuad.evaluation import ScoreHistogram, dice, empty_histogram, score_histogram, threshold_curve

BIN = 2**-11  # the widest bin in parts of its score
# Some differ by less than a bin; some by signs, twelve orders of magnitude, or not at all.
numbers = st.sampled_from([-3.0, -1e-9, -0.0, 0.0, 1e-44, 1e-9, 0.5, 0.50001, 0.50002, 0.7, 1.0, 1.0001, 1e6])
maps = hnp.arrays(np.float32, 60, elements=st.one_of(numbers, st.floats(0, 2, width=32)))
lesions = hnp.arrays(bool, 60).filter(lambda lesion: lesion.any() and not lesion.all())


def rounded(map):
    """Return scores rounded up to a mantissa of 11 bits, a number at a time."""
    mantissa, exponent = np.frexp(map.astype(np.float64))
    result = np.ldexp(np.ceil(mantissa * 2**12) / 2**12, exponent).astype(np.float32)
    tiny = np.abs(map) < np.finfo(np.float32).tiny
    step = 2.0 ** (-149 + 12)
    return np.where(tiny, np.ceil(np.where(tiny, map, 0) / step) * step, result).astype(np.float32)


@settings(max_examples=150, deadline=None)
@given(map=maps, lesion=lesions)
def test_measures_are_those_of_the_rounded_map(map, lesion):
    histogram, curve = score_histogram(map, lesion), threshold_curve(rounded(map), lesion)
    assert histogram.scores.tolist() == np.unique(rounded(map)).tolist()
    assert histogram.auroc() == pytest.approx(curve.auroc(), abs=1e-12)
    assert histogram.average_precision() == pytest.approx(curve.average_precision(), abs=1e-12)
    assert histogram.best_dice()[0] == curve.best_dice()[0]
    assert histogram.chance == lesion.mean()


@settings(max_examples=150, deadline=None)
@given(map=maps, lesion=lesions)
def test_the_map_itself_lies_within_the_bounds(map, lesion):
    histogram, curve = score_histogram(map, lesion), threshold_curve(map, lesion)
    for (low, high), exact, streamed in (
        (histogram.average_precision_bounds(), curve.average_precision(), histogram.average_precision()),
        (histogram.auroc_bounds(), curve.auroc(), histogram.auroc()),
    ):
        assert low - 1e-12 <= exact <= high + 1e-12
        assert low - 1e-12 <= streamed <= high + 1e-12


@settings(max_examples=100, deadline=None)
@given(map=maps, lesion=lesions, fraction=st.sampled_from([0, 0.001, 0.05, 0.1, 0.5, 0.99]))
def test_thresholds_are_exact_on_the_map_itself(map, lesion, fraction):
    histogram = score_histogram(map, lesion)
    best, threshold = histogram.best_dice()
    assert dice(map > np.float32(threshold), lesion) == best
    healthy = map[~lesion]
    streamed = histogram.false_positive_threshold(fraction)
    exact = false_positive_threshold([healthy], fraction)
    assert np.mean(healthy > np.float32(streamed)) <= fraction
    assert exact <= streamed <= exact + BIN * abs(exact) + 1e-41


@settings(max_examples=50, deadline=None)
@given(map=maps, lesion=lesions, cut=st.integers(0, 60))
def test_scans_add_up_to_their_pool_in_any_order(map, lesion, cut):
    parts = [score_histogram(map[:cut], lesion[:cut]), score_histogram(map[cut:], lesion[cut:])]
    for pooled in (parts[0] + parts[1], parts[1] + empty_histogram() + parts[0]):
        for name, values in score_histogram(map, lesion).to_arrays().items():
            np.testing.assert_array_equal(pooled.to_arrays()[name], values)


@settings(max_examples=50, deadline=None)
@given(map=maps, lesion=lesions, seed=st.integers(0, 100), power=st.integers(-8, 8))
def test_permutations_and_powers_of_two_change_nothing(map, lesion, seed, power):
    order = np.random.default_rng(seed).permutation(map.size)
    map = np.where(np.abs(map) < 1e-30, 0, map)  # so that none becomes subnormal
    expected = score_histogram(map, lesion)
    for other in (
        score_histogram(map[order].reshape(6, 10), lesion[order].reshape(6, 10)),
        score_histogram(torch.from_numpy(map * np.float32(2.0) ** power), torch.from_numpy(lesion)),
    ):
        assert other.average_precision() == expected.average_precision()
        assert other.best_dice()[0] == expected.best_dice()[0]


def test_error_on_as_many_voxels_as_a_brain_has(reference):
    brain = reference["mask"].astype(bool)
    map, lesion = reference["median"][brain], reference["lesion"][brain]
    histogram = score_histogram(map, lesion)
    low, high = histogram.average_precision_bounds()
    assert high - low < 0.005
    assert histogram.average_precision() == pytest.approx(average_precision_score(lesion, map), abs=0.002)
    assert histogram.auroc() == pytest.approx(roc_auc_score(lesion, map), abs=1e-4)
    assert histogram.best_dice()[0] == pytest.approx(threshold_curve(map, lesion).best_dice()[0], abs=0.002)
    assert histogram.best_dice()[1] == pytest.approx(threshold_curve(map, lesion).best_dice()[1], rel=2 * BIN)


def test_precision_recall_curve_equals_scikit_learn():
    rng = np.random.default_rng(0)
    lesion = rng.random(500) < 0.2
    map = rounded((rng.random(500) + 0.3 * lesion).astype(np.float32))
    recall, precision, thresholds = score_histogram(map, lesion).precision_recall()
    expected = precision_recall_curve(lesion, map)
    np.testing.assert_allclose(precision[::-1], expected[0][:-1])
    np.testing.assert_allclose(recall[::-1], expected[1][:-1])
    called = map > thresholds[:, None].astype(np.float32)
    np.testing.assert_allclose(called[:, lesion].mean(1), recall)


def test_a_thinned_curve_keeps_its_ends_and_shape():
    rng = np.random.default_rng(0)
    lesion = rng.random(20000) < 0.1
    histogram = score_histogram(rng.random(20000) + 0.5 * lesion, lesion)
    recall, precision, thresholds = histogram.precision_recall()
    few = histogram.precision_recall(points=50)
    assert len(few[0]) <= 50
    assert (few[0][0], few[1][0]) == (recall[0], precision[0])
    assert (few[0][-1], few[1][-1]) == (1, precision[np.argmax(recall == 1)])
    held = (recall > 0.02) & (np.diff(recall, prepend=0) > 0)
    np.testing.assert_allclose(np.interp(recall, few[0], few[1])[held], precision[held], atol=0.05)
    assert set(few[2]) <= set(thresholds)


def test_written_and_read_again():
    histogram = score_histogram([0.1, 0.5, 0.5], [0, 1, 0])
    file = io.BytesIO()
    np.savez(file, **histogram.to_arrays())
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        again = ScoreHistogram.from_arrays(arrays)
    assert (again + histogram).lesion.tolist() == [0, 2]
    assert again.scores.dtype == np.float32


def test_memory_does_not_grow_with_the_number_of_scans():
    rng = np.random.default_rng(0)
    pooled = empty_histogram()
    for _ in range(50):
        pooled = pooled + score_histogram(rng.random(20000), rng.random(20000) < 0.01)
    assert pooled.lesion.sum() + pooled.healthy.sum() == 10**6
    assert len(pooled.scores) < 2**11 * 12  # twelve exponents hold all but a 4,096th of the uniform scores


@pytest.mark.parametrize("value", [0.0, 0.5, -2.0, 1.23456])
def test_all_ties(value):
    histogram = score_histogram(np.full(4, value, np.float32), [1, 0, 0, 0])
    assert len(histogram.scores) == 1
    assert histogram.auroc() == 0.5
    assert histogram.average_precision() == 0.25
    best, threshold = histogram.best_dice()
    assert best == 0.4
    assert math.isfinite(threshold)
    assert np.float32(threshold) < np.float32(value)


def test_without_lesion_voxels_or_any():
    for histogram in (score_histogram(np.arange(4.0)), empty_histogram()):
        figures = (histogram.auroc(), histogram.average_precision())
        assert all(map(math.isnan, (*figures, *histogram.best_dice(), *histogram.average_precision_bounds())))
        assert np.isnan(histogram.precision_recall()[0]).all()
    assert math.isnan(empty_histogram().chance)
    everything = score_histogram(np.arange(4.0), np.ones(4))
    assert everything.average_precision() == everything.best_dice()[0] == 1
    assert math.isnan(everything.auroc())


def test_wrong_arguments():
    with pytest.raises(ValueError, match="map holds 1 NaN"):
        score_histogram([0.0, math.nan])
    with pytest.raises(ValueError, match="map has shape"):
        score_histogram(np.zeros(3), np.zeros(4))
    with pytest.raises(ValueError, match=r"got 1\.0"):
        score_histogram([0.0]).false_positive_threshold(1.0)
    with pytest.raises(ValueError, match="no healthy voxels"):
        score_histogram([0.0], [1]).false_positive_threshold(0.1)
