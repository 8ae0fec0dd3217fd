"""Features of a network for photographs, against the published network by its own code."""

from pathlib import Path

import numpy as np
import pytest
import torch

from brainuad.scoring import score_maps
from brainuad.scoring.features import feature_distance, feature_maps

REFERENCE = Path(__file__).parents[1] / "reference" / "features_lite0.npz"


def volumes(shape: tuple[int, int, int] = (28, 36, 5), seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((2, 1, 6, 6, 3), generator=generator)
    first, second = torch.nn.functional.interpolate(coarse, size=shape, mode="trilinear")[:, 0]
    return first, second


def test_features_are_those_of_the_published_network() -> None:
    stored = np.load(REFERENCE)
    found = feature_maps(torch.from_numpy(stored["slices"]))
    for number, features in enumerate(found, start=1):
        expected = torch.from_numpy(stored[f"block{number}"].astype(np.float32))
        assert features.shape == expected.shape
        # weights are stored in 16 bits
        assert (features - expected).abs().max() < 0.01 * expected.abs().max()


def test_a_volume_is_like_itself_and_unlike_another() -> None:
    first, second = volumes()
    assert feature_distance(first, first).abs().max() < 1e-5
    distance = feature_distance(first, second)
    assert distance.shape == first.shape
    assert 0.01 < distance.mean() < 2
    torch.testing.assert_close(distance, feature_distance(second, first))
    torch.testing.assert_close(  # slices are compared one by one
        distance[..., 1:3], feature_distance(first[..., 1:3], second[..., 1:3]), rtol=1e-4, atol=1e-5
    )


def test_brightness_matters_less_than_texture() -> None:
    first, _ = volumes()
    brighter = 0.9 * first + 0.05
    noisy = first + 0.05 * torch.randn(first.shape, generator=torch.Generator().manual_seed(1))
    assert (brighter - first).abs().mean() < (noisy - first).abs().mean() * 1.5
    assert feature_distance(first, brighter).mean() < 0.5 * feature_distance(first, noisy).mean()


def test_volumes_of_two_shapes() -> None:
    with pytest.raises(ValueError, match=r"\(28, 36, 5\) and \(28, 36, 4\)"):
        feature_distance(torch.zeros(28, 36, 5), torch.zeros(28, 36, 4))


def test_the_score_looks_at_the_brain_alone() -> None:
    image, reconstruction = volumes()
    mask = torch.zeros(image.shape, dtype=torch.bool)
    mask[4:20, 6:30, 1:4] = True
    found = score_maps(image, reconstruction[None], mask, ["features"])["features"]
    assert not found[~mask].any()
    outside = torch.where(mask, reconstruction, torch.nan)
    again = score_maps(torch.where(mask, image, 7.0), outside[None], mask, ["features"])["features"]
    torch.testing.assert_close(found, again)
