"""The distance to several reconstructions, against a dense inverse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from brainuad.errors import InputError
from brainuad.registry import SCORES
from brainuad.scoring import score_maps, ssim_maps
from brainuad.scoring.mahalanobis import distances

Case = tuple[Tensor, Tensor, Tensor]


@pytest.fixture
def case() -> Case:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand((8, 7, 5), generator=generator)
    reconstructions = image * 0.9 + 0.2 * torch.randn((4, 8, 7, 5), generator=generator)
    mask = torch.rand(image.shape, generator=generator) > 0.3
    mask[:, :, 4] = False
    return image, reconstructions, mask


def dense(image: np.ndarray, stack: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The formula as it stands, slice by slice."""
    found = np.zeros(image.shape)
    for z in range(image.shape[2]):
        brain = mask[:, :, z]
        rows = stack[:, brain, z]
        covariance = np.cov(rows, rowvar=False) + 0.01 * np.eye(brain.sum()) if brain.any() else np.eye(0)
        difference = image[brain, z] - rows.mean(0)
        product = difference * (np.linalg.inv(covariance) @ difference)
        found[brain, z] = np.sqrt(np.clip(product, 0, None))
    return found


def test_distances_are_those_of_a_dense_inverse(case: Case) -> None:
    image, stack, mask = case
    expected = dense(*(volume.double().numpy() for volume in (image, stack)), mask.numpy())
    np.testing.assert_allclose(distances(image, stack, mask).numpy(), expected, rtol=1e-8, atol=1e-12)


def test_a_negative_product_gives_0() -> None:
    """Two pixels that differ between draws alike, of which one alone differs from the image."""
    stack = torch.tensor([[[[0.0]], [[0.0]]], [[[1.0]], [[1.0]]]])
    image, mask = torch.tensor([[[0.6]], [[2.0]]]), torch.ones(2, 1, 1, dtype=torch.bool)
    found = distances(image, stack, mask)
    assert found[0] == 0
    assert found[1] > 0
    assert SCORES["mahalanobis"](image, stack, mask).isfinite().all()


def test_the_map_is_scaled_smoothed_and_weighted(case: Case) -> None:
    image, stack, mask = case
    found = SCORES["mahalanobis"](image, stack, mask)
    distance = dense(*(volume.double().numpy() for volume in (image, stack)), mask.numpy())
    smooth = ndimage.gaussian_filter((distance - distance.min()) / np.ptp(distance), 1)
    similarity = ssim_maps(stack.mean(0), image, sigmas=[1.0])[0].numpy()
    np.testing.assert_allclose(found.numpy(), smooth * (1 - similarity) * mask.numpy(), atol=1e-5)
    assert found.dtype == torch.float32
    assert torch.equal(found, score_maps(image, stack, mask, ["mahalanobis"])["mahalanobis"])
    torch.testing.assert_close(found, SCORES["mahalanobis"](image.numpy(), stack.numpy(), mask.numpy()))


def test_what_is_outside_the_brain_changes_no_distance(case: Case) -> None:
    image, stack, mask = case
    other = torch.where(mask, stack, torch.nan)
    torch.testing.assert_close(distances(image, other, mask), distances(image, stack, mask))


def test_like_reconstructions_give_the_absolute_difference(case: Case) -> None:
    image, stack, mask = case
    found = distances(image, stack[:1].expand(3, -1, -1, -1), mask)
    torch.testing.assert_close(found, (10 * (image - stack[0]).abs() * mask).double())
    assert not SCORES["mahalanobis"](image, image.expand(3, -1, -1, -1), mask).any()


def test_one_reconstruction_is_refused(case: Case) -> None:
    image, stack, mask = case
    with pytest.raises(InputError, match="mahalanobis: needs 2 or more reconstructions, got 1"):
        SCORES["mahalanobis"](image, stack[:1], mask)
