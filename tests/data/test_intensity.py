import numpy as np
import pytest
import SimpleITK as sitk
import torch
import torchio as tio
from hypothesis import given, settings
from hypothesis import strategies as st

from brainuad.data.intensity import curvature_flow, scale_to_percentiles


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
    theirs = tio.RescaleIntensity((0, 1), percentiles=(1, 99), masking_method="mask")(subject)[
        "image"
    ].numpy()[0]
    np.testing.assert_allclose(scale_to_percentiles(array, mask), theirs, atol=1e-5)


@given(factor=st.floats(0.01, 1000), seed=st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_the_unit_of_a_scan_does_not_matter(factor, seed):
    array, mask = scan(seed)
    np.testing.assert_allclose(
        scale_to_percentiles(array * factor, mask), scale_to_percentiles(array, mask), atol=1e-4
    )


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
