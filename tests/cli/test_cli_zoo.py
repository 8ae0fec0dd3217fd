"""Methods trained for a few seconds and evaluated by one command: stopped, typed again, and with one that fails."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from commands import run
from paper_layout import build_tree

import brainuad.experiment.zoo
from brainuad.detector import Detector
from brainuad.errors import InputError
from brainuad.experiment.zoo import clock, zoo_settings
from brainuad.registry import MODELS
from brainuad.train import seconds_used
from brainuad.train.callbacks import Epochs

SMALL = (
    "datamodule.cfg.imageDim=[40,48,32]",
    "datamodule.cfg.rescaleFactor=1",
    "datamodule.cfg.affine=ignored",
    "datamodule.cfg.aug_intensity=False",
    "trainer.accelerator=cpu",
    "logger=none",
    "callbacks.picture_every_n_epochs=0",
)
MODELS_OF_TEST = "ae,vae,atlas"


def typed(data_dir: Path, out: Path, *words: str, code: int = 0) -> Any:
    cache = f"datamodule.cfg.cache_dir='{out.parent / 'cache'}'"
    return run("zoo", data_dir, "-o", out, "--budget", "3s", *words, *SMALL, cache, code=code)


@pytest.mark.long
@pytest.mark.slow(seconds=30)
def test_stopped_and_typed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_dir, out = build_tree(tmp_path / "data"), tmp_path / "out"
    words = ("--models", MODELS_OF_TEST)
    original = Epochs.on_train_batch_end

    def stop(self: Epochs, trainer: Any, *args: Any) -> None:
        if trainer.global_step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        original(self, trainer, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Epochs, "on_train_batch_end", stop)
        typed(data_dir, out, *words, code=130)
    assert not (out / "zoo.md").exists()
    used = seconds_used(out / "models" / "ae-seed1")
    assert used > 0
    given: list[str] = []
    train_fold = brainuad.experiment.zoo.train_fold

    def noted(config: Any, *args: Any) -> Any:
        given.append(config.trainer.max_time)
        return train_fold(config, *args)

    monkeypatch.setattr(brainuad.experiment.zoo, "train_fold", noted)
    text = typed(data_dir, out, *words).stdout
    assert given == [clock(3 - used), clock(3), clock(3)], "what is left of the time"
    for row in ("ae, l1", "vae, ssim_ensemble", "atlas", "intensity_dark"):
        assert f"| {row} |" in text
    assert "Real lesions: MSLUB" in text
    assert "data:image/png;base64," in (out / "zoo.html").read_text(encoding="utf-8")
    costs = json.loads((out / "evaluations" / "vae-seed1" / "costs.json").read_text())
    assert costs["steps"] > 0
    assert costs["scan_seconds"] > 0

    monkeypatch.setattr(Detector, "infer", lambda *args, **kwargs: pytest.fail("looks at a scan again"))
    assert typed(data_dir, out, *words).stdout == text
    assert len(given) == 3, "what is trained is not trained again"
    refused = typed(data_dir, out, *words, "datamodule.cfg.lr=1", code=1)
    assert "datamodule.cfg.lr=0.0004 there, 1.0 here" in refused.stdout


def test_one_that_fails_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_dir, out = build_tree(tmp_path / "data"), tmp_path / "out"
    train_fold = brainuad.experiment.zoo.train_fold

    def failing(config: Any, *args: Any) -> Any:
        if config.model.cfg.name == "ae":
            raise InputError("training", "the loss was NaN", "Lower the rate")
        return train_fold(config, *args)

    monkeypatch.setattr(brainuad.experiment.zoo, "train_fold", failing)
    text = typed(data_dir, out, "--models", "ae,atlas", code=3).stdout
    assert "- failed: ae-seed1: training: the loss was NaN. Lower the rate" in text
    assert "| atlas |" in text
    assert "| random |" in text, "whichever is evaluated first brings the baselines"


@pytest.mark.parametrize("name", list(MODELS))
def test_every_model_has_settings_and_one_grid(name: str, tmp_path: Path) -> None:
    settings = ("datamodule.cfg.mode=t2", "trainer.accelerator=cpu")
    config = zoo_settings(name, 3, tmp_path, tmp_path / "models", 90, settings)
    reference = zoo_settings("atlas", 1, tmp_path, tmp_path / "models", 90, settings).datamodule.cfg
    assert config.model.cfg.name == name
    assert (config.seed, config.trainer.max_time, config.datamodule.cfg.mode) == (3, "00:00:01:30", "t2")
    for setting in ("imageDim", "rescaleFactor", "affine", "smoothing_iterations", "batch_size"):
        assert getattr(config.datamodule.cfg, setting) == getattr(reference, setting)


def test_small_presets_are_taken(tmp_path: Path) -> None:
    def dims(name: str) -> int:
        return int(vars(zoo_settings(name, 1, tmp_path, tmp_path, 60).model.cfg)["unet_dim"])

    assert dims("ddpm") == 48
    assert dims("cddpm") == 32


@pytest.mark.long
def test_packed_and_healthy_data_are_refused(tmp_path: Path) -> None:
    assert "holds no test scans" in typed(tmp_path / "t.npz", tmp_path / "out", code=1).stderr
    data_dir = build_tree(tmp_path / "data")
    for split in ("val", "test"):
        (data_dir / "Data" / "splits" / f"MSLUB_{split}.csv").unlink()
    assert "no test scan with a drawn lesion" in typed(data_dir, tmp_path / "out", code=1).stderr
    shutil.rmtree(data_dir)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--models", "autoencoder"), "'autoencoder' is unknown"),
        (("--budget", "30"), "is no time such as"),
        (("datamodule.cfg.rate=1",), "no such setting"),
    ],
)
def test_wrong_usage(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    told = run("zoo", tmp_path, "-o", tmp_path / "out", *words, code=2).stderr
    assert message in " ".join(told.split())
