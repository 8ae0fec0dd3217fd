"""What training promises, of every model: stopped and resumed it ends the same, and leaves a model that works."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from test_resume import interrupt_after
from tiny_training import load, tiny

import brainuad.models  # noqa: F401  (registers them)
from brainuad.config import ExperimentConfig
from brainuad.detector import load_model
from brainuad.errors import InputError
from brainuad.models.base import settings_class
from brainuad.registry import MODELS
from brainuad.train import fit, is_complete
from brainuad.train.slices import TrainingVolumes

UNET = {"unet_dim": 8, "dim_mults": (1, 2), "num_res_blocks": 1, "attention_head_dim": 8, "unshuffle": 2}
TINY: dict[str, dict[str, Any]] = {
    "ddpm": UNET,
    "cddpm": UNET,
    "pddpm": {**UNET, "patch_size": 16},
    "spark": {"decoder_width": 32},
    "restoration": UNET,
    "ae": {"latent_dim": 4, "widths": (4, 8)},
    "vae": {"latent_dim": 4, "widths": (4, 8)},
    "dae": {"widths": (4, 8)},
    "ddpm_dae": {**UNET, "widths": (4, 8)},
    "atlas": {},
}
EVERY = list(MODELS)


def experiment(name: str, **changes: Any) -> ExperimentConfig:
    """Two epochs of three steps with a tiny model of a name."""
    if name not in TINY:
        pytest.fail(f"{name} is in the registry: add tiny settings to TINY")
    config = tiny(**changes)
    config.model.cfg = settings_class(name)(name=name, **TINY[name])
    config.datamodule.cfg.aug_intensity = False  # slabs of several slices have none
    return config


def takes_steps(name: str) -> bool:
    return not MODELS[name](experiment(name).model.cfg).fits


@pytest.fixture(scope="module", params=EVERY)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def run(
    name: str, train_volumes: TrainingVolumes, val_volumes: TrainingVolumes, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of an unbroken training."""
    folder = tmp_path_factory.mktemp(name)
    assert fit(experiment(name), train_volumes, val_volumes, folder) == folder / "model"
    assert is_complete(experiment(name), folder)
    return folder


def test_stopped_and_resumed_it_ends_the_same(
    name: str,
    run: Path,
    train_volumes: TrainingVolumes,
    val_volumes: TrainingVolumes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not takes_steps(name):
        pytest.skip("it learns in one go")
    with monkeypatch.context() as patch:
        interrupt_after(2, patch, lambda epochs: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(KeyboardInterrupt):
            fit(experiment(name), train_volumes, val_volumes, tmp_path)
    assert load(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 2
    fit(experiment(name, resume=True), train_volumes, val_volumes, tmp_path)
    weights, expected = (load(folder / "checkpoints" / "last.ckpt")["state_dict"] for folder in (tmp_path, run))
    assert weights.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(weights[key], value), key


def test_a_checkpoint_of_another_method_is_refused(
    name: str, train_volumes: TrainingVolumes, val_volumes: TrainingVolumes, tmp_path: Path
) -> None:
    other = "ae" if name == "ddpm" else "ddpm"
    fit(experiment(other, max_steps=1), train_volumes, val_volumes, tmp_path)
    message = rf"was trained with other settings \(model\.cfg\.name={other} there, {name} here\)"
    with pytest.raises(InputError, match=message):
        fit(experiment(name, resume=True), train_volumes, val_volumes, tmp_path)


def test_the_exported_model_works(name: str, run: Path, val_volumes: TrainingVolumes) -> None:
    detector = load_model(run / "model", "cpu", "float32")
    with safe_open(run / "model" / "model.safetensors", "pt") as stored:
        assert set(stored.keys()) == set(detector.model.state_dict())
    assert type(detector.model_config) is settings_class(name)
    assert detector.model_config.name == name
    image, mask = val_volumes.images[0], val_volumes.masks[0]
    scores = [score for score in ("l1", "ssim_ensemble", "second_l1", "model") if detector.scores.makes(score)]
    assert scores
    maps = detector.maps(image, mask, scores)
    for score in scores:
        raw, final = maps.raw[score], maps.final[score]
        assert raw.shape == final.shape == image.shape
        assert np.isfinite(final).all(), score
        assert np.isfinite(raw).all(), score
        assert raw[mask].std() > 0, score
