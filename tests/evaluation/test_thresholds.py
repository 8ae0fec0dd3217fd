import math

import numpy as np
import pytest
import torch

from brainuad.evaluation import greedy_best_dice, pooled_greedy_threshold


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


def test_published_threshold(reference, published):
    threshold = pooled_greedy_threshold([reference["median"]], [torch.from_numpy(reference["lesion"])])
    assert threshold == pytest.approx(published["greedy_threshold"], abs=1e-8)


def test_pooled_thresholds_without_lesions(scans):
    maps, lesions = scans
    assert math.isnan(pooled_greedy_threshold(maps[2:], lesions[2:]))


def test_wrong_arguments(scans):
    maps, lesions = scans
    with pytest.raises(ValueError, match="zip"):
        pooled_greedy_threshold(maps, lesions[:2])
    with pytest.raises(ValueError, match="no validation scans"):
        pooled_greedy_threshold([], [])
