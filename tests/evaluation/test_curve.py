import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import average_precision_score, roc_auc_score

from brainuad.evaluation import auroc, average_precision, best_dice, dice, greedy_best_dice, threshold_curve

# Few distinct values, so that ties are common.
ties = hnp.arrays(np.float32, 40, elements=st.sampled_from([-0.5, 0.0, 0.1, 0.25, 0.5, 0.7, 1.5]))
lesions = hnp.arrays(bool, 40)
some_lesion = lesions.filter(lambda lesion: lesion.any() and not lesion.all())


def test_published_figures(reference, published):
    curve = threshold_curve(reference["median"], reference["lesion"])
    assert curve.auroc() == pytest.approx(published["auroc"], abs=1e-6)
    assert curve.average_precision() == pytest.approx(published["average_precision"], abs=1e-6)
    found, threshold = curve.greedy_best_dice()
    assert found == pytest.approx(published["greedy_best_dice"], abs=1e-9)
    assert threshold == pytest.approx(published["greedy_threshold"], abs=1e-8)


def test_exact_search_beats_the_greedy_one(reference):
    exact, threshold = best_dice(reference["median"], reference["lesion"])
    assert exact > greedy_best_dice(reference["median"], reference["lesion"])[0]
    assert dice(reference["median"] > threshold, reference["lesion"]) == exact


@settings(max_examples=100, deadline=None)
@given(map=ties, lesion=some_lesion)
def test_equal_to_scikit_learn(map, lesion):
    assert auroc(map, lesion) == pytest.approx(roc_auc_score(lesion, map), abs=1e-12)
    assert average_precision(map, lesion) == pytest.approx(average_precision_score(lesion, map), abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(map=ties, lesion=some_lesion)
def test_best_dice_is_the_best_of_all_thresholds(map, lesion):
    thresholds = [-math.inf, *np.unique(map)]
    every = [dice(map > threshold, lesion) for threshold in thresholds]
    best, threshold = best_dice(map, lesion)
    assert best == max(every)
    assert dice(map > threshold, lesion) == best
    assert dice(torch.from_numpy(map) > threshold, torch.from_numpy(lesion)) == best
    curve = threshold_curve(map, lesion)
    assert [curve.dice_above(t) for t in thresholds] == every


@settings(max_examples=50, deadline=None)
@given(map=ties, lesion=some_lesion, threshold=st.floats(-2, 2, width=32))
def test_no_threshold_is_better_than_the_best(map, lesion, threshold):
    best, _ = best_dice(map, lesion)
    assert dice(map > np.float32(threshold), lesion) <= best
    assert greedy_best_dice(map, lesion)[0] <= best


@settings(max_examples=50, deadline=None)
@given(map=ties, lesion=some_lesion, seed=st.integers(0, 1000))
def test_ranks_are_all_that_counts(map, lesion, seed):
    order = np.random.default_rng(seed).permutation(map.size)
    for other, truth in (
        (map[order], lesion[order]),
        (np.exp(map.astype(np.float64)), lesion),
        (3 * map + 1, lesion),
        (map.reshape(4, 10), lesion.reshape(4, 10)),
    ):
        assert average_precision(other, truth) == pytest.approx(average_precision(map, lesion), abs=1e-12)
        assert auroc(other, truth) == pytest.approx(auroc(map, lesion), abs=1e-12)
        assert best_dice(other, truth)[0] == best_dice(map, lesion)[0]


def bisected(map, lesion, low, high, steps=10, best=(-1.0, 0.0)):
    """The greedy search as a recursion over whole maps."""
    if steps == 0:
        return best
    lower, upper = 0.75 * low + 0.25 * high, 0.25 * low + 0.75 * high
    at_lower, at_upper = dice(map > lower, lesion), dice(map > upper, lesion)
    middle = (low + high) / 2
    if at_upper >= at_lower:
        return bisected(map, lesion, middle, high, steps - 1, max(best, (at_upper, upper), key=lambda b: b[0]))
    return bisected(map, lesion, low, middle, steps - 1, max(best, (at_lower, lower), key=lambda b: b[0]))


@pytest.mark.parametrize("seed", range(5))
def test_greedy_search_equals_a_recursion(seed):
    rng = np.random.default_rng(seed)
    lesion = rng.random(2000) < 0.1
    map = rng.random(2000) + 0.4 * lesion
    found, _ = greedy_best_dice(map, lesion)
    assert found == bisected(map, lesion, 0.0, map.max())[0]


@pytest.mark.parametrize("values", [[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]])
def test_constant_map(values):
    map, lesion = np.array(values, np.float32), np.array([True, False, False])
    assert auroc(map, lesion) == 0.5
    assert average_precision(map, lesion) == pytest.approx(1 / 3)
    best, threshold = best_dice(map, lesion)
    assert best == 0.5
    assert math.isfinite(threshold)
    assert (map > np.float32(threshold)).all()


def test_greedy_search_on_a_map_of_zeros():
    assert greedy_best_dice(np.zeros(4), np.array([1, 0, 0, 0])) == (0.0, 0.0)


def test_without_a_lesion_nothing_is_defined():
    curve = threshold_curve(np.arange(4.0), np.zeros(4))
    figures = [curve.auroc(), curve.average_precision(), *curve.best_dice(), *curve.greedy_best_dice()]
    assert all(map(math.isnan, figures))
    assert curve.dice_above(2.5) == 0
    assert math.isnan(curve.dice_above(3))


def test_everything_lesion():
    curve = threshold_curve(np.arange(4.0), np.ones(4))
    assert math.isnan(curve.auroc())
    assert curve.average_precision() == 1
    assert curve.best_dice()[0] == 1


def test_empty_arrays():
    curve = threshold_curve(np.empty(0), np.empty(0))
    assert math.isnan(curve.auroc())
    assert math.isnan(curve.greedy_best_dice()[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int32, torch.bool])
def test_takes_any_type(dtype):
    map = torch.tensor([0.0, 0.25, 0.75, 1.0]).to(dtype)
    lesion = torch.tensor([0, 0, 1, 1])
    expected = average_precision_score(lesion.numpy(), map.double().numpy())
    assert average_precision(map, lesion) == pytest.approx(expected)


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"map has shape \(2, 2\), lesion \(4,\)"):
        auroc(np.zeros((2, 2)), np.zeros(4))
    with pytest.raises(ValueError, match="map holds 1 NaN"):
        auroc(np.array([0.0, np.nan]), np.array([0, 1]))
