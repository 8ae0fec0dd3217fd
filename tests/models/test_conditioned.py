"""The conditioned diffusion model: told of the clean slice, trained with what tells it, saved with it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from brainuad.config import DataConfig
from brainuad.modelfile import read_model, write_model
from brainuad.models import ConditionedDiffusionModel, DiffusionModel
from brainuad.models.conditioned import ConditionedSettings
from brainuad.models.layers import ResidualBlock
from brainuad.models.spark import SparkModel, SparkSettings


@pytest.fixture
def model() -> ConditionedDiffusionModel:
    torch.manual_seed(1)
    sizes = {"unet_dim": 8, "dim_mults": (1, 2), "num_res_blocks": 1, "attention_head_dim": 8, "unshuffle": 2}
    return ConditionedDiffusionModel(ConditionedSettings(**sizes))


def randomise(model: ConditionedDiffusionModel) -> ConditionedDiffusionModel:
    for parameter in model.parameters():  # a new network returns zeros
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_what_it_is_told_changes_the_output(model: ConditionedDiffusionModel) -> None:
    noisy, t = torch.randn(2, 1, 16, 16, generator=generator()), torch.tensor([5, 500])
    told = randomise(model).condition(torch.rand(2, 1, 16, 16, generator=generator()))
    assert told.shape == (2, 32)
    with torch.no_grad():
        output = model.denoise(noisy, t, told)
        assert output.shape == noisy.shape
        assert not torch.allclose(output, model.denoise(noisy, t, told + 1), atol=1e-4)
        swapped = model.denoise(noisy, t, told.flip(0))
        assert not torch.equal(output[0], swapped[0])


def test_the_encoder_is_trained_with_the_network(model: ConditionedDiffusionModel) -> None:
    images = torch.rand(3, 1, 16, 16, generator=generator())
    draws = model.draw(3, (16, 16), generator())
    before = model.encoder[0].weight.clone()
    optimiser, losses = torch.optim.Adam(model.parameters(), lr=3e-3), []
    for _ in range(15):
        optimiser.zero_grad()
        loss = model.loss(images, images > 0, draws)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert not torch.equal(model.encoder[0].weight, before)


def test_slice_and_noise_level_scale_and_shift_every_block() -> None:
    """The published sizes: 512 numbers each."""
    with torch.device("meta"):
        published = ConditionedDiffusionModel(ConditionedSettings(encoder="resnet50"))
    blocks = [part for part in published.modules() if isinstance(part, ResidualBlock)]
    assert len(blocks) == 27
    for block in blocks:
        assert (block.time_emb_proj.in_features, block.time_emb_proj.out_features) == (
            1024,
            2 * block.conv1.out_channels,
        )
    assert [tuple(layer.weight.shape) for layer in published.project if hasattr(layer, "weight")] == [(512, 512)] * 2
    assert published.encoder.fc.out_features == 512
    assert published.encoder.conv1.in_channels == 1


def test_with_resnet_it_learns_and_reconstructs(model: ConditionedDiffusionModel) -> None:
    model = ConditionedDiffusionModel(replace(model.config, encoder="resnet50"))
    images = torch.rand(2, 1, 32, 32, generator=generator())
    randomise(model).loss(images, images > 0, model.draw(2, (32, 32), generator())).backward()
    assert model.encoder.conv1.weight.grad.abs().sum() > 0
    assert model.eval().reconstruct(images, generator()).isfinite().all()


def test_training_starts_from_a_pretrained_encoder(model: ConditionedDiffusionModel) -> None:
    pretrained = SparkModel(SparkSettings(decoder_width=32))
    before = model.encoder.get_parameter("26.weight").clone()
    model.start_from(lambda name: pytest.fail("nothing to load"))
    model.config = replace(model.config, pretrained_encoder="folder")
    model.start_from({"folder": pretrained}.__getitem__)
    for name, value in pretrained.encoder.state_dict().items():
        assert torch.equal(model.encoder.state_dict()[name], value)
    assert torch.equal(model.encoder.get_parameter("26.weight"), before)


def test_a_model_without_the_newer_settings_loads(model: ConditionedDiffusionModel, tmp_path: Path) -> None:
    write_model(tmp_path, model, model.config, DataConfig())
    path = tmp_path / "config.yaml"
    saved = path.read_text()
    older = re.sub("  (pretrained_)?encoder: .*\n", "", saved)
    assert len(older.splitlines()) == len(saved.splitlines()) - 2
    path.write_text(older)
    assert read_model(tmp_path)[1] == model.config


def test_batches_are_told_of_their_own_slices(model: ConditionedDiffusionModel) -> None:
    images = torch.rand(5, 1, 16, 16, generator=generator())
    whole = randomise(model).reconstruct(images, generator(), batch_size=5)
    for size in (1, 2):
        parts = model.reconstruct(images, generator(), batch_size=size)
        torch.testing.assert_close(parts, whole, rtol=0, atol=1e-4)


def test_saved_and_loaded_it_reconstructs_the_same(model: ConditionedDiffusionModel, tmp_path: Path) -> None:
    write_model(tmp_path, randomise(model), model.config, DataConfig())
    loaded, config, *_ = read_model(tmp_path)
    assert type(loaded) is ConditionedDiffusionModel
    assert config == model.config
    images = torch.rand(2, 1, 16, 16, generator=generator())
    assert torch.equal(loaded.reconstruct(images, generator()), model.reconstruct(images, generator()))
    assert set(loaded.state_dict()) > set(DiffusionModel(config).state_dict())
