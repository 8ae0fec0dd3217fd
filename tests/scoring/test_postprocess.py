import functools
import json
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from skimage.measure import label, regionprops

from brainuad.scoring import drop_small, erode_brain, large_components, median_filter, postprocess
from brainuad.scoring.postprocess import _median_on_device, smoothed

METRICS = json.loads((Path(__file__).parents[1] / "reference" / "scoring_mslub19_t1.json").read_text(encoding="utf-8"))
small_shapes = st.tuples(*[st.integers(1, 8)] * 3)
binaries = hnp.arrays(bool, small_shapes)
# Mostly zeros, as maps are outside the brain, with ties and negative numbers.
maps = hnp.arrays(np.float32, small_shapes, elements=st.sampled_from([-1.0, 0.5, 0.7, 2.0]), fill=st.just(0.0))


@pytest.fixture(scope="module")
def anomaly(reference):
    return (1 - reference["ssim_ensemble"]) * reference["mask"]


def test_erosion_is_the_published_one(anomaly, reference):
    assert reference["mask"][:, 0].any()  # the mask touches the border, so what lies beyond it matters
    np.testing.assert_array_equal(erode_brain(anomaly, reference["mask"]).numpy(), reference["eroded"])


def test_median_is_the_published_one(reference):
    np.testing.assert_array_equal(median_filter(reference["eroded"]).numpy(), reference["median"])


def test_postprocess_is_the_published_one(anomaly, reference):
    np.testing.assert_array_equal(postprocess(anomaly, reference["mask"]).numpy(), reference["median"])


def test_component_filter_is_the_published_one(reference):
    binary = reference["median"] > METRICS["greedy_threshold"]
    np.testing.assert_array_equal(drop_small(binary).numpy(), reference["binary"])


def test_tensors_and_arrays_give_the_same(anomaly, reference):
    mask = torch.from_numpy(reference["mask"])
    expected = postprocess(anomaly, reference["mask"])
    assert torch.equal(postprocess(torch.from_numpy(anomaly), mask), expected)
    assert expected.dtype == torch.float32
    assert drop_small(torch.from_numpy(reference["binary"])).dtype == torch.bool
    reversed_twice = np.flip(np.flip(reference["mask"]).copy())
    assert torch.equal(erode_brain(anomaly, reversed_twice), erode_brain(anomaly, reference["mask"]))


def eroded_by_shifts(mask, iterations):
    for _ in range(iterations):
        padded = np.pad(mask, ((1, 1), (1, 1), (0, 0)))
        mask = mask & padded[2:, 1:-1] & padded[:-2, 1:-1] & padded[1:-1, 2:] & padded[1:-1, :-2]
    return mask


@pytest.mark.parametrize("width", [24, 25, 49, 50, 96])
def test_erosion_equals_shifted_masks(width):
    mask = np.random.default_rng(0).random((20, width, 4)) > 0.02
    eroded = erode_brain(np.ones(mask.shape, np.float32), mask).numpy() > 0
    np.testing.assert_array_equal(eroded, eroded_by_shifts(mask, width // 25))
    assert not (eroded & ~mask).any()


@settings(max_examples=60, deadline=None)
@given(values=maps, size=st.sampled_from([1, 3, 5]))
def test_median_equals_scipy(values, size):
    expected = ndimage.median_filter(values, size=size, mode="reflect")
    np.testing.assert_array_equal(median_filter(values, size).numpy(), expected)


@pytest.mark.parametrize("size", [4, 0])
def test_windows_that_cannot_be_are_refused(size):
    with pytest.raises(ValueError, match="must"):
        median_filter(np.ones((3, 3, 3)), size)


@pytest.mark.parametrize("width", [1, 2.5, 6])
def test_smoothing_is_a_weighted_mean_over_the_brain(width):
    rng = np.random.default_rng(0)
    values, mask = rng.random((30, 50, 20)).astype(np.float32), np.zeros((30, 50, 20), bool)
    mask[4:26, 5:45, 3:17] = True
    mask[10:14, 20:30, 8:12] = False
    inside = erode_brain(mask.astype(np.float32), mask).numpy() > 0
    gaussian = functools.partial(ndimage.gaussian_filter, sigma=width, mode="mirror", truncate=3.5)
    total, weight = gaussian(np.where(inside, values, 0).astype(float)), gaussian(inside.astype(float))
    found = smoothed(np.where(mask, values, np.nan), mask, width).numpy()
    np.testing.assert_allclose(found, np.divide(total, weight, out=np.zeros_like(total), where=inside), atol=1e-5)
    even = smoothed(np.full(mask.shape, 3.0), mask, width)
    np.testing.assert_allclose(even, np.where(inside, 3, 0), rtol=1e-5)  # the rim is not darker


@pytest.mark.parametrize("zeros", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("negative", [0.0, 0.4, 1.0])
def test_median_of_windows_with_many_zeros_equals_scipy(zeros, negative):
    rng = np.random.default_rng(0)
    values = rng.random((12, 11, 10), dtype=np.float32) * (rng.random((12, 11, 10)) > zeros)
    values *= np.where(rng.random((12, 11, 10)) < negative, -1, 1)
    for size in (3, 5, 7):
        expected = ndimage.median_filter(values, size=size, mode="reflect")
        np.testing.assert_array_equal(median_filter(values, size).numpy(), expected)


@pytest.mark.parametrize("corner", [0, 1, 2, 3])
def test_median_near_the_border_equals_scipy(corner):
    values = np.zeros((14, 13, 12), np.float32)
    block = np.random.default_rng(corner).random((5, 5, 5), dtype=np.float32)
    values[corner : corner + 5, corner : corner + 5, corner : corner + 5] = block
    expected = ndimage.median_filter(values, size=5, mode="reflect")
    np.testing.assert_array_equal(median_filter(values).numpy(), expected)


@settings(max_examples=60, deadline=None)
@given(values=maps, half=st.sampled_from([0, 1, 2, 4]))
def test_median_of_a_device_is_that_of_the_processor(values, half):
    expected = median_filter(values, 2 * half + 1)
    assert torch.equal(_median_on_device(torch.from_numpy(values), half), expected)


def test_median_of_a_device_in_parts(reference, monkeypatch):
    # The package has a function of the module's name.
    monkeypatch.setattr(import_module("brainuad.scoring.postprocess"), "WINDOW_VOXELS", 5_000_000)
    eroded = torch.from_numpy(reference["eroded"])
    np.testing.assert_array_equal(_median_on_device(eroded, 2).numpy(), reference["median"])


def test_median_of_nothing():
    assert (median_filter(np.zeros((6, 5, 4))) == 0).all()


def test_double_precision_is_kept():
    assert median_filter(np.ones((3, 3, 3))).dtype == torch.float64


def by_scikit_image(binary, min_voxels):
    """Labels of the large components, and their sizes."""
    labels = label(binary, connectivity=3)
    large = [region for region in regionprops(labels) if region.area_filled >= min_voxels]
    return labels * np.isin(labels, [region.label for region in large]), [region.area for region in large]


@settings(max_examples=60, deadline=None)
@given(binary=binaries, min_voxels=st.integers(1, 40))
def test_component_filter_equals_scikit_image_and_is_idempotent(binary, min_voxels):
    kept = drop_small(binary, min_voxels)
    labels, sizes = by_scikit_image(binary, min_voxels)
    np.testing.assert_array_equal(kept.numpy(), labels > 0)
    ours, our_sizes = large_components(binary, min_voxels)
    pairs = {*zip(ours.ravel().tolist(), labels.ravel().tolist(), strict=True)} - {(0, 0)}
    assert len(pairs) == len(sizes)  # the same components, whatever their numbers
    assert sorted(our_sizes[our_sizes > 0]) == sorted(sizes)
    np.testing.assert_array_equal(np.bincount(ours[ours > 0], minlength=len(our_sizes) + 1)[1:], our_sizes)
    assert torch.equal(drop_small(kept, min_voxels), kept)


def test_seven_voxels_go_and_eight_stay():
    binary = np.zeros((20, 8, 8), dtype=bool)
    binary[1:8, 1, 1] = True
    for step in range(8):  # diagonal: 26-connected
        binary[10 + step, step, step] = True
    kept = drop_small(binary).numpy()
    assert not kept[:8].any()
    assert kept[10:18].sum() == 8


def test_size_counts_enclosed_holes_but_does_not_fill_them():
    shell = np.ones((3, 3, 3), dtype=bool)
    shell[1, 1, 1] = False
    binary = np.pad(shell, 2)
    assert drop_small(binary, 27).sum() == 26
    assert drop_small(binary, 28).sum() == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_what_a_processor_gives(anomaly, reference):
    found = postprocess(torch.from_numpy(anomaly).cuda(), reference["mask"])
    assert found.is_cuda
    np.testing.assert_array_equal(found.cpu().numpy(), reference["median"])
    for min_voxels in (8, 64):
        kept = drop_small(found > METRICS["greedy_threshold"], min_voxels)
        assert kept.is_cuda
        assert torch.equal(kept.cpu(), drop_small(found.cpu() > METRICS["greedy_threshold"], min_voxels))


def test_wrong_arguments(anomaly, reference):
    with pytest.raises(ValueError, match="size must be odd and positive, got 4"):
        median_filter(anomaly, 4)
    with pytest.raises(ValueError, match=r"mask has shape \(64, 70, 23\), the volume \(64, 70, 24\)"):
        erode_brain(anomaly, reference["mask"][..., 1:])
    with pytest.raises(ValueError, match=r"binary must be \(X, Y, Z\), got shape \(3, 3\)"):
        drop_small(np.ones((3, 3)))
