import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity
from torch.nn import functional as F

from brainuad.config import SSIM_SIGMAS
from brainuad.scoring import ssim, ssim_ensemble, ssim_maps
from brainuad.scoring.ssim import _moments, blur, fuse_maps, gaussian_kernel


def pair(shape=(20, 18, 15), seed=0, dtype=torch.float64):
    """A smooth volume and a noisy copy of it."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((1, 1, 5, 5, 5), generator=generator, dtype=torch.float64)
    image = F.interpolate(coarse, size=shape, mode="trilinear")[0, 0]
    noisy = image + 0.1 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return noisy.to(dtype), image.to(dtype)


def dense_ssim(reconstruction, image, sigma, data_range):
    """SSIM as its definition reads: one dense kernel, five convolutions."""
    line = torch.tensor(gaussian_kernel(sigma), dtype=image.dtype)
    half = len(line) // 2
    kernel = (line[:, None, None] * line[None, :, None] * line)[None, None]

    def blur(volume):
        return F.conv3d(F.pad(volume[None, None], (half,) * 6, mode="reflect"), kernel)[0, 0]

    x, y = reconstruction, image
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    mean_x, mean_y = blur(x), blur(y)
    variance_x, variance_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    return ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    )


def test_maps_are_the_published_ones(reference):
    maps = ssim_maps(reference["reconstruction"], reference["image"], sigmas=reference["sigmas"].tolist())
    assert maps.dtype == torch.float32
    # The published maps are float32 with variances that cancel; a float64 computation is as far from them.
    difference = (maps - torch.from_numpy(reference["ssim_maps"])).abs()
    assert difference.max() < 1.5e-3
    assert difference.mean() < 5e-5


def test_ensemble_is_the_published_one(reference):
    ensemble = ssim_ensemble(reference["reconstruction"], reference["image"])
    published = torch.from_numpy(reference["ssim_ensemble"])
    assert (ensemble - published).abs().max() < 1e-3
    assert (ensemble - published).abs().mean() < 1e-5
    assert abs(ensemble.double().mean() - published.double().mean()) < 1e-5


def test_published_ensemble_follows_from_the_published_maps(reference):
    fused = fuse_maps([torch.from_numpy(reference["ssim_maps"])])
    torch.testing.assert_close(fused, torch.from_numpy(reference["ssim_ensemble"]), atol=2e-6, rtol=0)


@pytest.mark.parametrize("sigma", SSIM_SIGMAS)
def test_maps_equal_dense_convolution(sigma):
    reconstruction, image = pair()
    expected = dense_ssim(reconstruction, image, sigma, 1.3)
    actual = ssim_maps(reconstruction, image, sigmas=[sigma], data_range=1.3)[0]
    torch.testing.assert_close(actual, expected, atol=1e-10, rtol=0)


def test_float32_is_close_to_float64(reference):
    volumes = [torch.from_numpy(reference[name]) for name in ("reconstruction", "image")]
    single = ssim_maps(*volumes, sigmas=SSIM_SIGMAS)
    double = ssim_maps(*(volume.double() for volume in volumes), sigmas=SSIM_SIGMAS)
    assert double.dtype == torch.float64
    assert (single - double).abs().max() < 1.5e-4


@pytest.mark.parametrize("sigma", [0.5, 1.1, 1.5])
def test_interior_equals_scikit_image(sigma):
    reconstruction, image = pair((24, 22, 20))
    data_range = 1.2
    _, expected = structural_similarity(
        reconstruction.numpy(),
        image.numpy(),
        gaussian_weights=True,
        sigma=sigma,
        use_sample_covariance=False,
        data_range=data_range,
        full=True,
    )
    actual = ssim_maps(reconstruction, image, sigmas=[sigma], data_range=data_range)[0].numpy()
    inside = (slice(6, -6),) * 3  # its borders repeat the edge voxel
    np.testing.assert_allclose(actual[inside], expected[inside], atol=1e-10)


@pytest.mark.parametrize(("sigma", "length"), zip(SSIM_SIGMAS, (3, 5, 5, 7, 9, 11, 11, 13), strict=True))
def test_window(sigma, length):
    kernel = gaussian_kernel(sigma)
    assert len(kernel) == length
    assert sum(kernel) == pytest.approx(1, abs=1e-15)
    assert kernel == kernel[::-1]


def test_axis_shorter_than_the_window_is_mirrored_repeatedly():
    reconstruction, image = pair((9, 4, 2))
    padded = [torch.from_numpy(np.pad(volume.numpy(), 6, mode="reflect")) for volume in (reconstruction, image)]
    expected = dense_ssim(*padded, 1.7, 1.0)[6:-6, 6:-6, 6:-6]
    actual = ssim_maps(reconstruction, image, sigmas=[1.7], data_range=1.0)[0]
    torch.testing.assert_close(actual, expected, atol=1e-10, rtol=0)


def test_single_slice_has_the_two_dimensional_ssim():
    reconstruction, image = pair((24, 22, 1))
    _, expected = structural_similarity(
        reconstruction[:, :, 0].numpy(),
        image[:, :, 0].numpy(),
        gaussian_weights=True,
        use_sample_covariance=False,
        data_range=1.0,
        full=True,
    )
    actual = ssim_maps(reconstruction, image, sigmas=[1.5], data_range=1.0)[0, :, :, 0].numpy()
    np.testing.assert_allclose(actual[6:-6, 6:-6], expected[6:-6, 6:-6], atol=1e-10)


@pytest.mark.parametrize("voxels", [1, 100, 700])
def test_slabs_change_nothing(voxels, monkeypatch):
    volumes = pair((20, 18, 15), dtype=torch.float32)
    sigmas = (0.3, 1.7)
    monkeypatch.setattr(ssim, "SLAB_VOXELS", 10**6)
    maps, ensemble = ssim_maps(*volumes, sigmas=sigmas), ssim_ensemble(*volumes)
    monkeypatch.setattr(ssim, "SLAB_VOXELS", voxels)
    assert len(list(ssim._Pair.of(*volumes, sigmas, None).slabs())) == {1: 20, 100: 20, 700: 10}[voxels]
    assert torch.equal(ssim_maps(*volumes, sigmas=sigmas), maps)
    assert torch.equal(ssim_ensemble(*volumes), ensemble)


def test_default_data_range_is_the_larger_of_the_two():
    reconstruction, image = pair()
    larger = max(float(volume.max() - volume.min()) for volume in (reconstruction, image))
    torch.testing.assert_close(
        ssim_maps(reconstruction, image, sigmas=[0.9]),
        ssim_maps(reconstruction, image, sigmas=[0.9], data_range=larger),
    )


def test_ensemble_favours_the_less_similar_widths():
    reconstruction, image = pair()
    maps = ssim_maps(reconstruction, image, sigmas=(0.3, 1.7))
    ensemble = ssim_ensemble(reconstruction, image, sigmas=(0.3, 1.7))
    torch.testing.assert_close(ensemble, (torch.softmax(-maps, 0) * maps).sum(0))
    assert (ensemble <= maps.mean(0) + 1e-12).all()
    assert (ensemble >= maps.amin(0) - 1e-12).all()


def test_constant_volumes():
    volume = torch.full((6, 6, 6), 0.4)
    assert (ssim_ensemble(volume, volume) == 1).all()
    different = ssim_ensemble(volume, torch.zeros_like(volume))
    assert different.isfinite().all()
    assert (different < 0.01).all()


@pytest.mark.parametrize(
    "convert",
    [
        lambda v: v[::-1][::-1],
        lambda v: v.astype(">f4"),
        lambda v: np.asfortranarray(v),
        lambda v: torch.from_numpy(v).requires_grad_(),
    ],
    ids=["reversed", "big-endian", "fortran", "with gradient"],
)
def test_takes_any_kind_of_array(convert):
    arrays = [volume.numpy() for volume in pair((8, 7, 6), dtype=torch.float32)]
    expected = ssim_ensemble(*arrays)
    assert torch.equal(ssim_ensemble(*map(convert, arrays)), expected)


def test_half_precision_input_is_computed_in_float32():
    halves = [volume.half() for volume in pair((8, 7, 6))]
    actual = ssim_ensemble(*halves)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, ssim_ensemble(*(half.float() for half in halves)))


def test_autocast_changes_nothing():
    volumes = pair((10, 9, 8), dtype=torch.float32)
    expected = ssim_ensemble(*volumes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ssim_ensemble(*volumes), expected)


def test_inputs_are_left_alone():
    volumes = pair((8, 7, 6))
    copies = [volume.clone() for volume in volumes]
    ssim_ensemble(*volumes)
    assert all(torch.equal(volume, copy) for volume, copy in zip(volumes, copies, strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reconstruction": torch.zeros(4, 4)}, r"reconstruction must have 3 non-empty axes.*\(4, 4\)"),
        ({"image": torch.zeros(4, 4, 0)}, r"image must have 3"),
        ({"image": torch.zeros(4, 4, 5)}, r"differ in shape: \(4, 4, 4\) and \(4, 4, 5\)"),
        ({"sigmas": []}, "at least one"),
        ({"sigmas": [0.5, 0.0]}, r"positive.*0\.0"),
        ({"data_range": -1.0}, r"data_range must be positive, got -1\.0"),
    ],
)
def test_wrong_arguments(arguments, message):
    good = {"reconstruction": torch.zeros(4, 4, 4), "image": torch.zeros(4, 4, 4), "sigmas": [0.5]}
    with pytest.raises(ValueError, match=message):
        ssim_maps(**(good | arguments))


seeds = st.integers(0, 2**16)
shapes = st.tuples(*[st.integers(2, 9)] * 3)


@settings(max_examples=25, deadline=None)
@given(shape=shapes, seed=seeds, scale=st.floats(0.01, 1000), single=st.booleans())
def test_properties(shape, seed, scale, single):
    reconstruction, image = pair(shape, seed, torch.float32 if single else torch.float64)
    tolerance = {"atol": 2e-4 if single else 1e-9, "rtol": 0}
    maps = ssim_maps(reconstruction, image, sigmas=(0.3, 1.1, 1.7))
    assert maps.abs().max() <= 1 + 1e-6
    assert torch.equal(maps, ssim_maps(image, reconstruction, sigmas=(0.3, 1.1, 1.7)))
    assert (ssim_maps(image, image, sigmas=(0.3, 1.7)) == 1).all()
    scaled = ssim_maps(reconstruction * scale, image * scale, sigmas=(0.3, 1.1, 1.7))
    torch.testing.assert_close(scaled, maps, **tolerance)
    for axis in range(3):
        flipped = ssim_maps(reconstruction.flip(axis), image.flip(axis), sigmas=(0.3, 1.1, 1.7))
        torch.testing.assert_close(flipped.flip(axis + 1), maps, **tolerance)
    turned = ssim_maps(reconstruction.permute(2, 0, 1), image.permute(2, 0, 1), sigmas=(0.3, 1.1, 1.7))
    torch.testing.assert_close(turned.permute(0, 2, 3, 1), maps, **tolerance)


@settings(max_examples=25, deadline=None)
@given(shape=st.tuples(*[st.integers(1, 9)] * 3), seed=seeds)
def test_blurs_of_a_device_are_those_of_the_processor(shape, seed):
    volumes = torch.stack(pair(shape, seed, torch.float64))
    kernels = [gaussian_kernel(sigma) for sigma in (0.3, 1.1, 1.7)]
    blurred = blur(volumes, kernels)
    for number, volume in enumerate(volumes):
        for index, kernel in enumerate(kernels):
            mean, square = _moments(volume, range(shape[0]), kernel)
            torch.testing.assert_close(blurred[number, index], mean)
            again = blur(volume.square()[None], [kernel])[0, 0]
            torch.testing.assert_close(again, square)


@pytest.mark.parametrize("made", ["allow_tf32 = True", "fp32_precision = 'tf32'"])
def test_products_are_in_full_precision_whichever_setting_was_made(made):
    if not hasattr(torch.backends.cuda.matmul, made.split()[0]):
        pytest.skip("this PyTorch has the older setting alone")
    code = (
        "import torch; from brainuad.scoring.ssim import _full_precision; matmul = torch.backends.cuda.matmul\n"
        f"matmul.{made}\n"
        "try:\n"
        "    with _full_precision(torch.device('cpu')):\n"
        "        print(matmul.fp32_precision if hasattr(matmul, 'fp32_precision') else matmul.allow_tf32)\n"
        "        1 / 0\n"
        "except ZeroDivisionError:\n"
        "    print(matmul.fp32_precision if hasattr(matmul, 'fp32_precision') else matmul.allow_tf32)\n"
    )
    # in a process of its own, for the newer setting cannot be taken back
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert found.split() in (["ieee", "tf32"], ["False", "True"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_device_gives_the_same_and_stays_there():
    volumes = pair(dtype=torch.float32)
    on_device = ssim_ensemble(*(volume.cuda() for volume in volumes))
    assert on_device.is_cuda
    torch.testing.assert_close(on_device.cpu(), ssim_ensemble(*volumes), atol=2e-4, rtol=0)
