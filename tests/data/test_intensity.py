from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
import torchio as tio
from hypothesis import given, settings
from hypothesis import strategies as st

from brainuad.data.intensity import curvature_flow, on_zero, scale_to_percentiles

FILES = Path(__file__).parent.parent / "files"


def read(name: str) -> np.ndarray:
    return nib.load(FILES / f"{name}.nii.gz").get_fdata(dtype=np.float32)


def scan(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    array = rng.gamma(2.0, 50.0, (12, 14, 10)).astype(np.float32)
    mask = np.zeros(array.shape, bool)
    mask[2:-2, 2:-2, 2:-2] = True
    return array * mask, mask


def test_scaling_equals_torchio():
    array, mask = scan()
    subject = tio.Subject(
        image=tio.ScalarImage(tensor=torch.tensor(array)[None]),
        mask=tio.LabelMap(tensor=torch.tensor(mask)[None].int()),
    )
    theirs = tio.RescaleIntensity((0, 1), percentiles=(1, 99), masking_method="mask")(subject)["image"].numpy()[0]
    np.testing.assert_allclose(scale_to_percentiles(array, mask), theirs, atol=1e-5)


@given(factor=st.floats(0.01, 1000), seed=st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_the_unit_of_a_scan_does_not_matter(factor, seed):
    array, mask = scan(seed)
    np.testing.assert_allclose(scale_to_percentiles(array * factor, mask), scale_to_percentiles(array, mask), atol=1e-4)


def test_an_empty_mask_and_a_constant_image_are_refused():
    array, mask = scan()
    with pytest.raises(ValueError, match="mask is empty"):
        scale_to_percentiles(array, np.zeros_like(mask))
    with pytest.raises(ValueError, match="constant"):
        scale_to_percentiles(np.full_like(array, 7), mask)


def test_curvature_flow_smooths_noise_but_keeps_a_constant_and_its_axes():
    array, _ = scan()
    smooth = curvature_flow(array)
    assert smooth.shape == array.shape
    assert np.abs(np.diff(smooth, axis=0)).mean() < np.abs(np.diff(array, axis=0)).mean()
    flat = np.full((5, 6, 7), 3.0, np.float32)
    np.testing.assert_allclose(curvature_flow(flat), flat)
    np.testing.assert_array_equal(curvature_flow(array, iterations=0), array)
    # curvature is the same seen from any side
    np.testing.assert_allclose(
        curvature_flow(array.transpose(2, 0, 1)), smooth.transpose(2, 0, 1), rtol=1e-3, atol=1e-2
    )


@pytest.mark.parametrize("iterations", [1, 3, 6])
def test_curvature_flow_of_the_part_that_varies_is_that_of_the_whole(iterations):
    padded = np.pad(scan()[0], ((9, 0), (1, 12), (15, 3)))
    whole = sitk.CurvatureFlow(sitk.GetImageFromArray(padded), timeStep=0.125, numberOfIterations=iterations)
    ours = curvature_flow(padded, iterations=iterations)
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, sitk.GetArrayFromImage(whole).astype(np.float32))


@pytest.mark.parametrize(
    "name", ["ixi013_t1_4mm", "mslub19_t1_4mm", "brats01477_t1_3mm", "brats01477_flair_3mm", "mslub19_t2_atlas_4mm"]
)
def test_a_scan_on_zero_stays_as_it_is(name):
    array = read(name)
    assert on_zero(array) is array
    noisy = array + np.abs(np.random.default_rng(0).normal(0, 0.02 * array.max(), array.shape))
    for usual in (noisy, array - np.float32(0.004) * array.max() * (array > 0)):
        np.testing.assert_array_equal(on_zero(usual.astype(np.float32)), usual.astype(np.float32))


def z_score(array: np.ndarray) -> np.ndarray:
    return (array - array.mean()) / array.std()


def minus_one_to_one(array: np.ndarray) -> np.ndarray:
    return 2 * array / array.max() - 1


def offset(array: np.ndarray) -> np.ndarray:
    return array + array.max()


@pytest.mark.parametrize("change", [z_score, minus_one_to_one, offset])
@pytest.mark.parametrize("name", ["ixi013_t1_4mm", "mslub19_t1_4mm"])
def test_a_background_elsewhere_becomes_zero(name, change):
    array = read(name)
    found = on_zero(change(array).astype(np.float32))
    scale = np.percentile(array, 99) / np.percentile(found, 99)
    np.testing.assert_allclose(found * scale, array, atol=0.03 * array.max())


def standardised_brain(array: np.ndarray) -> np.ndarray:
    inside = array > 0.05 * array.max()
    return np.where(inside, (array - array[inside].mean()) / array[inside].std(), 0)


def as_signed(array: np.ndarray) -> np.ndarray:
    return np.clip(255 * array / np.percentile(array, 99), 0, 255).astype(np.uint8).view(np.int8)


def a_few_as_signed(array: np.ndarray) -> np.ndarray:
    """One voxel of tissue in 250 is beyond what signed numbers hold."""
    beyond = np.percentile(array[array > 0.05 * array.max()], 99.6)
    return np.clip(127 * array / beyond, 0, 255).astype(np.uint8).view(np.int8)


@pytest.mark.parametrize("change", [standardised_brain, as_signed, a_few_as_signed, np.negative])
@pytest.mark.parametrize("name", ["ixi013_t1_4mm", "mslub19_t1_4mm", "brats01477_t1_3mm"])
def test_tissue_below_its_background_is_refused(name, change):
    with pytest.raises(ValueError, match=r"has [\d.]+% of its tissue below its background of .*read as signed$"):
        on_zero(change(read(name)).astype(np.float32))


def test_a_constant_is_no_background():
    array = np.full((5, 5, 5), 7, dtype=np.float32)
    assert on_zero(array).any()
