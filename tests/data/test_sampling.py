import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from brainuad.data.placement import Placement, resample
from brainuad.data.sampling import _operator, sample_axes

SIZES = st.tuples(*[st.integers(2, 17)] * 3)
STEPS = st.tuples(*[st.floats(-3, 3).filter(lambda step: abs(step) > 0.1)] * 3)
STARTS = st.tuples(*[st.floats(-8, 20)] * 3)


@pytest.mark.parametrize("mode", ["constant", "mirror"])
@pytest.mark.parametrize("order", [1, 3])
@given(size=SIZES, shape=SIZES, steps=STEPS, starts=STARTS, sigma=st.sampled_from([0.0, 0.3, 1.2]))
@settings(max_examples=40, deadline=None)
def test_it_equals_scipy_on_any_grid(mode, order, size, shape, steps, starts, sigma):
    array = np.random.default_rng(0).random(size).astype(np.float32)
    sigmas = (sigma, 0.0, sigma / 2)
    ours = sample_axes(array, steps, starts, shape, order=order, mode=mode, sigmas=sigmas)
    smooth = ndimage.gaussian_filter(array.astype(np.float64), sigmas, mode="constant")
    theirs = ndimage.affine_transform(smooth, np.diag(steps), starts, shape, order=order, mode=mode)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, atol=2e-6)


@pytest.mark.parametrize("order", [1, 3])
def test_zeros_around_what_is_sampled_change_nothing(order):
    array = np.zeros((30, 20, 25), dtype=np.float32)
    grid = ([1.7, 2.0, -0.6], [0.3, -1.0, 20.0], (18, 12, 40))
    assert not sample_axes(array, *grid, order=order, mode="constant").any()
    array[7:15, 2:18, 11:12] = np.random.default_rng(0).random((8, 16, 1)) - 0.5
    ours = sample_axes(array, *grid, order=order, mode="constant")
    theirs = ndimage.affine_transform(array.astype(np.float64), np.diag(grid[0]), *grid[1:], order=order)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("order", [1, 3])
def test_a_sample_on_the_last_voxel_has_its_value(order):
    array = np.random.default_rng(0).random((12, 12, 12)).astype(np.float32) + 1
    ours = sample_axes(array, [0.3] * 3, [11.0] * 3, (1, 1, 1), order=order, mode="constant")
    np.testing.assert_allclose(ours[0, 0, 0], array[11, 11, 11], rtol=1e-5)


@pytest.mark.parametrize("order", [1, 3])
def test_parallel_grids_give_what_slightly_turned_ones_do(order):
    frame = Placement.around_atlas((40, 48, 36), 4.0)
    scan = np.random.default_rng(0).random((90, 100, 80)).astype(np.float32)
    matrix = np.diag([2.0, 2.0, -2.0, 1.0])
    matrix[:3, 3] = (1.5, 0.25, 79.0)
    turned = matrix.copy()
    turned[0, 1] = 2e-5  # a thousandth of a voxel at the far end: no longer parallel
    parallel = resample(scan, matrix, frame.shape, order=order)
    np.testing.assert_allclose(parallel, resample(scan, turned, frame.shape, order=order), atol=2e-3)
    assert parallel.std() > 0.05


def test_no_weight_is_below_the_normal_range():
    matrix = _operator(200, 2.0, 0.5, 100, 0.7, 3, "constant")
    weights = np.abs(matrix[matrix != 0])
    assert weights.min() >= np.float32(1e-15)
    np.testing.assert_allclose(matrix[20:80].sum(axis=1), 1, atol=1e-6)
