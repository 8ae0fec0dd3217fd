import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from brainuad.evaluation import (
    best_dice,
    dice,
    false_positive_thresholds,
    greedy_best_dice,
    pooled_best_threshold,
    pooled_greedy_threshold,
)


@pytest.fixture
def scans():
    """Maps and lesions of three scans of different size; the last has no lesion."""
    rng = np.random.default_rng(0)
    lesions = [rng.random((8, 7, size)) < share for size, share in ((4, 0.1), (6, 0.3), (5, 0.0))]
    maps = [(rng.random(lesion.shape) + 0.5 * lesion).astype(np.float32) for lesion in lesions]
    return maps, lesions


def test_pooled_thresholds_are_those_of_all_voxels_together(scans):
    together = [np.concatenate([array.ravel() for array in arrays]) for arrays in scans]
    assert pooled_greedy_threshold(*scans) == greedy_best_dice(*together)[1]
    threshold = pooled_best_threshold(*scans)
    assert threshold == best_dice(*together)[1]
    assert dice(together[0] > threshold, together[1]) == best_dice(*together)[0]


def test_published_threshold(reference, published):
    threshold = pooled_greedy_threshold([reference["median"]], [torch.from_numpy(reference["lesion"])])
    assert threshold == pytest.approx(published["greedy_threshold"], abs=1e-8)


def test_pooled_thresholds_without_lesions(scans):
    maps, lesions = scans
    assert math.isnan(pooled_greedy_threshold(maps[2:], lesions[2:]))
    assert math.isnan(pooled_best_threshold(maps[2:], lesions[2:]))


@settings(max_examples=50, deadline=None)
@given(
    size=st.integers(1, 300),
    fraction=st.floats(0, 0.999),
    levels=st.sampled_from([3, 10**6]),
    seed=st.integers(0, 1000),
)
def test_false_positive_fraction_is_kept_and_the_threshold_is_the_smallest(size, fraction, levels, seed):
    scores = np.random.default_rng(seed).integers(0, levels, size).astype(np.float32)
    threshold = false_positive_thresholds([scores], [np.ones(size)], [fraction])[fraction]
    assert (scores > threshold).mean() <= fraction + 1e-6 / size
    smaller = scores[scores < threshold]
    if smaller.size:
        assert (scores > smaller.max()).mean() > fraction - 1e-9


def test_false_positive_thresholds_pool_the_brains():
    maps = [np.arange(100.0), np.arange(100.0, 200.0)]
    masks = [np.ones(100), torch.ones(100)]
    maps[1][50:] = 0  # as many zeros as brain voxels are cut off
    masks[1][50:] = 0
    thresholds = false_positive_thresholds(maps, masks)
    assert list(thresholds) == [0.1, 0.05, 0.01, 0.001]
    assert thresholds == {0.1: 134.0, 0.05: 142.0, 0.01: 148.0, 0.001: 149.0}


def test_maps_are_left_alone():
    map = np.arange(10.0)[::-1].copy()
    false_positive_thresholds([map], [np.ones(10)])
    np.testing.assert_array_equal(map, np.arange(10.0)[::-1])


def test_wrong_arguments(scans):
    maps, lesions = scans
    with pytest.raises(ValueError, match="zip"):
        pooled_best_threshold(maps, lesions[:2])
    with pytest.raises(ValueError, match="no validation scans"):
        pooled_greedy_threshold([], [])
    with pytest.raises(ValueError, match="no brain voxels"):
        false_positive_thresholds(maps, [np.zeros(map.shape) for map in maps])
    with pytest.raises(ValueError, match=r"fractions must be at least 0 and below 1, got \[1\.0\]"):
        false_positive_thresholds(maps, lesions, [0.1, 1.0])
