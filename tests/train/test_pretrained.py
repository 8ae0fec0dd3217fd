"""From masked pretraining to a conditioned model: what is taken over, when, and what batch normalisation measures."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import load, tiny

from brainuad.config import ExperimentConfig
from brainuad.detector import load_model
from brainuad.errors import InputError
from brainuad.models.conditioned import ConditionedSettings
from brainuad.models.spark import SparkSettings
from brainuad.train import fit
from brainuad.train.module import Training
from brainuad.train.slices import TrainingVolumes

Volumes = tuple[TrainingVolumes, TrainingVolumes]


@pytest.fixture(scope="module")
def volumes(train_volumes: TrainingVolumes, val_volumes: TrainingVolumes) -> Volumes:
    return train_volumes, val_volumes


@pytest.fixture(scope="module")
def pretrained(volumes: Volumes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run."""
    folder = tmp_path_factory.mktemp("spark")
    config = tiny(max_steps=3)
    config.model.cfg = SparkSettings(decoder_width=32)
    fit(config, *volumes, folder)
    return folder


def conditioned(encoder: Path | str, **changes: Any) -> ExperimentConfig:
    config = tiny(**changes)
    sizes = {"unet_dim": 8, "dim_mults": (1, 1), "num_res_blocks": 1, "attention_head_dim": 8, "unshuffle": 2}
    config.model.cfg = ConditionedSettings(**sizes, pretrained_encoder=str(encoder))
    return config


def test_training_starts_from_the_encoder_and_needs_it_no_more(
    pretrained: Path, volumes: Volumes, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(pretrained / "model", tmp_path / "encoder"))
    module = Training(conditioned(folder), *volumes)
    module.start()
    theirs = load_model(folder, "cpu").model.encoder.state_dict()
    for part in (module.model, module.average):
        assert all(torch.equal(part.encoder.state_dict()[name], value) for name, value in theirs.items())
    fit(conditioned(folder, max_steps=4), *volumes, tmp_path / "unbroken")
    fit(conditioned(folder, max_steps=2), *volumes, tmp_path / "broken")
    shutil.rmtree(folder)
    fit(conditioned("elsewhere", max_steps=4, resume=True), *volumes, tmp_path / "broken")
    expected, found = (
        load(tmp_path / name / "checkpoints" / "last.ckpt")["state_dict"] for name in ("unbroken", "broken")
    )
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert load_model(tmp_path / "broken" / "model", "cpu").model_config.encoder == "small"
    with pytest.raises(InputError, match="elsewhere: is neither a shipped model nor a folder"):
        fit(conditioned("elsewhere"), *volumes, tmp_path / "anew")


def test_statistics_are_those_of_training_slices(
    pretrained: Path, volumes: Volumes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The average has what training measured; validation measures nothing."""
    state = load(pretrained / "checkpoints" / "last.ckpt")["state_dict"]
    measured = [name for name in state if name.startswith("model.") and name.endswith("running_mean")]
    assert len(measured) == 8
    for name in measured:
        assert state[name].abs().sum() > 0
        assert torch.equal(state[name.replace("model.", "average.", 1)], state[name])
    steps = {int(value) for name, value in state.items() if name.endswith("num_batches_tracked")}
    assert steps == {3}
    exported = load_model(pretrained / "model", "cpu").model.state_dict()
    assert all(torch.equal(exported[name.removeprefix("model.")], state[name]) for name in measured)


def test_without_an_average_validation_measures_nothing_either(volumes: Volumes, tmp_path: Path) -> None:
    config = tiny(max_steps=3, ema_decay=0.0)
    config.model.cfg = SparkSettings(decoder_width=32)
    config.callbacks.picture_every_n_epochs = 1
    fit(config, *volumes, tmp_path)
    state = load(tmp_path / "checkpoints" / "last.ckpt")["state_dict"]
    assert {int(value) for name, value in state.items() if name.endswith("num_batches_tracked")} == {3}
