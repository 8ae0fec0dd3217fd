"""The healthy atlas as a model: what it learns, and what it says of a volume."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from brainuad.config import DataConfig
from brainuad.errors import InputError
from brainuad.modelfile import read_model, write_model
from brainuad.models.atlas import AtlasModel, AtlasSettings
from brainuad.models.base import slabs_of
from brainuad.scoring.health import HealthyStatistics

GRID = (12, 10, 8)


@pytest.fixture(scope="module")
def healthy() -> tuple[torch.Tensor, torch.Tensor]:
    """Six volumes whose mean and spread differ from place to place, and what is in them outside the brain."""
    generator = torch.Generator().manual_seed(0)
    ramp = torch.linspace(0, 1, GRID[0])[:, None, None]
    images = ramp + (0.05 + 0.2 * ramp) * torch.randn(6, *GRID, generator=generator)
    masks = torch.zeros(6, *GRID, dtype=torch.bool)
    masks[:, 1:-1, 1:-1, 1:-1] = True
    return images, masks


@pytest.fixture(scope="module")
def fitted(healthy: tuple[torch.Tensor, torch.Tensor]) -> AtlasModel:
    model = AtlasModel(AtlasSettings())
    assert model.fit(*healthy) == AtlasSettings(grid=GRID)
    return model


def test_it_says_what_the_intensity_atlas_of_the_same_scans_does(
    fitted: AtlasModel, healthy: tuple[torch.Tensor, torch.Tensor]
) -> None:
    statistics = HealthyStatistics(["image"], GRID)
    for image, mask in zip(*healthy, strict=True):
        statistics.add({"image": image}, mask)
    volume, mask = healthy[0][0] + 0.3, healthy[1][0]
    found = fitted.maps(slabs_of(volume), slabs_of(mask), None)
    assert found.shape == (GRID[2], 1, *GRID[:2])
    expected = statistics.score("intensity_atlas", volume, mask)
    torch.testing.assert_close(found[:, 0].permute(1, 2, 0) * mask, expected, rtol=1e-3, atol=1e-4)


def test_small_deviations_are_floored(healthy: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, masks = healthy[0].clone(), healthy[1]
    images[:, :4] = 0.5
    model = AtlasModel(AtlasSettings())
    model.fit(images, masks)
    inside = model.sd[masks[0]]
    assert inside.min() > 0.1 * inside.max()
    assert np.isclose(model.mean[1, 4, 4], 0.5, atol=1e-3)


def test_saved_and_loaded_it_says_the_same(
    fitted: AtlasModel, healthy: tuple[torch.Tensor, torch.Tensor], tmp_path
) -> None:
    write_model(tmp_path, fitted, fitted.config, DataConfig())
    loaded, settings, *_ = read_model(tmp_path)
    assert settings == fitted.config
    slabs = slabs_of(healthy[0][0])
    assert torch.equal(loaded.maps(slabs, slabs > 0, None), fitted.maps(slabs, slabs > 0, None))


def test_other_grids_and_single_scans_are_refused(
    fitted: AtlasModel, healthy: tuple[torch.Tensor, torch.Tensor]
) -> None:
    images, masks = healthy
    with pytest.raises(InputError, match="1 healthy scan gives no standard deviation"):
        AtlasModel(AtlasSettings()).fit(images[:1], masks[:1])
    with pytest.raises(InputError, match=r"model\.cfg\.grid: is \(1, 2, 3\), and the training scans have"):
        AtlasModel(AtlasSettings(grid=(1, 2, 3))).fit(images, masks)
    with pytest.raises(ValueError, match=r"the volume is \(12, 10, 7\), the grid of the atlas \(12, 10, 8\)"):
        fitted.maps(slabs_of(images[0])[1:], slabs_of(masks[0])[1:], None)
