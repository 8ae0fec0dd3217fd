import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from brainuad.evaluation import lesion_surface, surface_distances
from brainuad.evaluation.distances import surface

volumes = hnp.arrays(bool, st.tuples(*[st.integers(1, 6)] * 3))
spacings = st.tuples(*[st.sampled_from([0.8, 1.0, 2.0, 3.3])] * 3)


def distances_between(prediction, lesion, spacing):
    return surface_distances(prediction, lesion_surface(lesion, spacing))


def by_monai(prediction, lesion, spacing):
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

    pair = [torch.from_numpy(mask.copy())[None, None].float() for mask in (prediction, lesion)]
    settings = {"include_background": True, "spacing": spacing}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of its own call of itself
        return (
            float(compute_hausdorff_distance(*pair, percentile=95, **settings)),
            float(compute_average_surface_distance(*pair, symmetric=True, **settings)),
        )


@settings(max_examples=40, deadline=None)
@given(prediction=volumes, seed=st.integers(0, 1000), share=st.sampled_from([0.1, 0.5, 0.9]), spacing=spacings)
def test_equal_to_monai(prediction, seed, share, spacing):
    lesion = np.random.default_rng(seed).random(prediction.shape) < share
    distances = distances_between(prediction, lesion, spacing)
    if not prediction.any() or not lesion.any():
        assert math.isnan(distances.hd95)
        assert math.isnan(distances.assd)
    else:
        expected = by_monai(prediction, lesion, spacing)
        assert (distances.hd95, distances.assd) == pytest.approx(expected, abs=1e-5)


def test_equal_to_monai_on_a_drawn_lesion(reference):
    prediction, lesion = reference["binary"].astype(bool), reference["lesion"].astype(bool)
    distances = distances_between(prediction, lesion, 4.0)
    expected = by_monai(prediction, lesion, (4.0, 4.0, 4.0))
    assert (distances.hd95, distances.assd) == pytest.approx(expected, abs=1e-5)
    assert distances.assd > 0


@settings(max_examples=30, deadline=None)
@given(prediction=volumes, seed=st.integers(0, 1000), axis=st.integers(0, 2), spacing=spacings)
def test_symmetric_and_the_same_when_flipped(prediction, seed, axis, spacing):
    lesion = np.random.default_rng(seed).random(prediction.shape) < 0.5
    distances = distances_between(prediction, lesion, spacing)
    for other in (
        distances_between(lesion, prediction, spacing),
        distances_between(np.flip(prediction, axis), np.flip(lesion, axis), spacing),
        distances_between(prediction.T, lesion.T, spacing[::-1]),
    ):
        assert (other.hd95, other.assd) == pytest.approx((distances.hd95, distances.assd), nan_ok=True)


def test_of_a_set_to_itself_and_between_two_voxels():
    mask = np.zeros((4, 4, 4), dtype=bool)
    mask[1:3, 1:3, 1:4] = True
    assert distances_between(mask, mask, 2.0) == distances_between(torch.from_numpy(mask), mask, (1, 1, 1))
    assert distances_between(mask, mask, 2.0).hd95 == 0
    one, other = np.zeros((2, 4, 4, 4), dtype=bool)
    one[0, 1, 2], other[3, 1, 1] = True, True
    distances = distances_between(one, other, (1.0, 1.0, 4.0))
    assert (distances.hd95, distances.assd) == (5.0, 5.0)


def test_surface_leaves_out_the_inside():
    mask = np.zeros((7, 7, 7), dtype=bool)
    mask[1:6, 1:6, 1:6] = True
    points = {tuple(point) for point in surface(mask)}
    assert len(points) == 5**3 - 3**3
    assert (3, 3, 3) not in points
    assert all(mask[point] for point in points)


@settings(max_examples=40, deadline=None)
@given(mask=st.one_of(volumes, hnp.arrays(bool, st.tuples(st.integers(1, 6), st.integers(1, 6)))))
def test_surface_is_what_an_erosion_takes_away(mask):
    expected = np.argwhere(mask & ~ndimage.binary_erosion(mask))
    np.testing.assert_array_equal(surface(mask), expected)
    np.testing.assert_array_equal(surface(np.asfortranarray(mask)), expected)


def test_a_surface_serves_many_predictions():
    rng = np.random.default_rng(0)
    lesion = rng.random((6, 7, 8)) < 0.1
    lesions = lesion_surface(lesion, (1.0, 2.0, 0.7))
    for share in (0.01, 0.2, 0.9):
        prediction = rng.random(lesion.shape) < share
        assert surface_distances(prediction, lesions) == distances_between(prediction, lesion, (1.0, 2.0, 0.7))


def test_wrong_shapes():
    with pytest.raises(ValueError, match="prediction has shape"):
        surface_distances(np.zeros((2, 2, 2)), lesion_surface(np.ones((2, 2, 3)), 1.0))
