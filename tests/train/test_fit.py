from __future__ import annotations

import io
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import load_file
from tiny_training import load, table, tiny

from brainuad.config import ExperimentConfig, LoggerConfig, TrainerConfig
from brainuad.errors import InputError
from brainuad.modelfile import read_model
from brainuad.train import fit
from brainuad.train.fit import build_loggers, quiet_lightning, resolve_precision, total_steps
from brainuad.train.module import Training
from brainuad.train.slices import TrainingVolumes


def test_what_a_run_leaves(unbroken: Path) -> None:
    rows = table(unbroken)
    assert [(row["epoch"], row["step"]) for row in rows] == [("1", "3"), ("2", "6")]
    best_row = min(rows, key=lambda row: float(row["val_loss"]))
    assert best_row is rows[-1]  # so the last checkpoint has the weights of the best model
    last = load(unbroken / "checkpoints" / "last.ckpt")
    model, model_config, data_config, provenance, calibration = read_model(unbroken / "model")
    averaged = {
        name.removeprefix("average."): value
        for name, value in last["state_dict"].items()
        if name.startswith("average.")
    }
    exported = model.state_dict()
    assert exported.keys() == averaged.keys()
    assert all(torch.equal(exported[name], averaged[name]) for name in averaged)
    assert model_config == tiny().model.cfg
    assert data_config.batch_size == 2
    assert calibration is None
    assert str(provenance["epoch"]) == best_row["epoch"]
    assert provenance["validation_loss"] == pytest.approx(float(best_row["val_loss"]), rel=1e-4)
    scans = provenance["training_scans"], provenance["validation_scans"]
    assert (provenance["fold"], provenance["step"], *scans) == (0, int(best_row["step"]), 5, 2)
    assert sorted(path.name for path in (unbroken / "pictures").iterdir()) == ["epoch00001.png", "epoch00002.png"]
    assert (unbroken / "pictures" / "epoch00001.png").read_bytes().startswith(b"\x89PNG")
    assert (unbroken / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert list((unbroken / "tensorboard").glob("events.*"))
    assert [path.name for path in (unbroken / "checkpoints").iterdir()] == ["last.ckpt"]
    assert not list(unbroken.rglob(".partial-*"))


def test_training_starts_from_the_weights_of_another_model(
    unbroken: Path, train_volumes: TrainingVolumes, val_volumes: TrainingVolumes
) -> None:
    start = Training(tiny(initial_weights=str(unbroken / "model")), train_volumes, val_volumes)
    other = load_file(unbroken / "model" / "model.safetensors")
    assert all(torch.equal(value, other[name]) for name, value in start.average.state_dict().items())
    with pytest.raises(InputError, match=r"lite-t1: has weights of another network \(ddpm_dae\)"):
        Training(tiny(initial_weights="lite-t1"), train_volumes, val_volumes)


def test_first_step_warms_up_and_averages(
    train_volumes: TrainingVolumes, val_volumes: TrainingVolumes, tmp_path: Path
) -> None:
    fit(tiny(max_steps=1), train_volumes, val_volumes, tmp_path)
    after = load(tmp_path / "checkpoints" / "last.ckpt")["state_dict"]
    before = Training(tiny(), train_volumes, val_volumes).model.state_dict()
    largest = 0.0
    for name, start in before.items():
        current, average = after[f"model.{name}"], after[f"average.{name}"]
        largest = max(largest, (current - start).abs().max().item())
        # the first decay is min(0.999, (1 + 0) / (10 + 0))
        torch.testing.assert_close(average, 0.1 * start + 0.9 * current)
    # Adam's first step is the learning rate in every weight, here a quarter of it
    assert largest == pytest.approx(1e-3 / 4, rel=1e-3)


def test_gradients_are_clipped(train_volumes: TrainingVolumes, val_volumes: TrainingVolumes, tmp_path: Path) -> None:
    fit(tiny(max_steps=1, gradient_clip_val=1e-12), train_volumes, val_volumes, tmp_path)
    after = load(tmp_path / "checkpoints" / "last.ckpt")["state_dict"]
    before = Training(tiny(), train_volumes, val_volumes).model.state_dict()
    # far below Adam's epsilon, gradients hardly move a weight
    assert max((after[f"model.{name}"] - start).abs().max() for name, start in before.items()) < 1e-6


def test_without_averaging(train_volumes: TrainingVolumes, val_volumes: TrainingVolumes, tmp_path: Path) -> None:
    fit(tiny(max_steps=1, ema_decay=0.0), train_volumes, val_volumes, tmp_path)
    weights = load(tmp_path / "checkpoints" / "last.ckpt")["state_dict"]
    exported = read_model(tmp_path / "model")[0].state_dict()
    assert all(torch.equal(value, weights[f"model.{name}"]) for name, value in exported.items())


def test_bf16_on_the_cpu(train_volumes: TrainingVolumes, val_volumes: TrainingVolumes, tmp_path: Path) -> None:
    fit(tiny(max_steps=1, precision="bf16-mixed"), train_volumes, val_volumes, tmp_path)
    weights = load(tmp_path / "checkpoints" / "last.ckpt")["state_dict"]
    assert all(value.dtype == torch.float32 for value in weights.values())


def test_a_fused_optimiser_clips_and_steps_alike(
    train_volumes: TrainingVolumes, val_volumes: TrainingVolumes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fused Adam, which is taken on CUDA, in the precision that is taken there."""
    plain = torch.optim.Adam

    def fused_adam(parameters: Any, lr: float, fused: bool | None) -> torch.optim.Optimizer:
        assert fused is None  # this is a processor
        return plain(parameters, lr=lr, fused=True)

    fit(tiny(max_steps=2, precision="bf16-mixed"), train_volumes, val_volumes, tmp_path / "plain")
    monkeypatch.setattr(torch.optim, "Adam", fused_adam)
    fit(tiny(max_steps=2, precision="bf16-mixed"), train_volumes, val_volumes, tmp_path / "fused")
    found, expected = (load(tmp_path / name / "checkpoints" / "last.ckpt")["state_dict"] for name in ("fused", "plain"))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_compiled_training_is_training(
    train_volumes: TrainingVolumes, val_volumes: TrainingVolumes, tmp_path: Path
) -> None:
    states = []
    for compiled in (True, False):
        folder = tmp_path / str(compiled)
        config = tiny(max_steps=2, compile=compiled)
        config.model.cfg.dim_mults = (1,)  # compiling is what takes the time
        fit(config, train_volumes, val_volumes, folder)
        assert bool(torch._dynamo.utils.counters["stats"]) == compiled
        torch._dynamo.utils.counters.clear()
        states.append(load(folder / "checkpoints" / "last.ckpt")["state_dict"])
    found, expected = states
    assert list(found) == list(expected)
    differences = torch.cat([(found[name] - value).abs().flatten() for name, value in expected.items()])
    assert differences.mean() < 1e-5  # two steps move a weight by up to 8e-4


def test_total_steps() -> None:
    assert total_steps(TrainerConfig(max_epochs=4), 10) == 40
    assert total_steps(TrainerConfig(max_epochs=4, max_steps=15), 10) == 15
    assert total_steps(TrainerConfig(max_epochs=1, max_steps=15), 10) == 10


def test_auto_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert resolve_precision(TrainerConfig()) == "bf16-mixed"
    assert resolve_precision(TrainerConfig(accelerator="cpu")) == "32-true"
    assert resolve_precision(TrainerConfig(precision="16-mixed")) == "16-mixed"
    assert resolve_precision(TrainerConfig(precision="16")) == "16-mixed"
    assert resolve_precision(TrainerConfig(precision="bf16")) == "bf16-mixed"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    assert resolve_precision(TrainerConfig()) == "32-true"


def test_wandb_that_is_not_installed(
    train_volumes: TrainingVolumes, val_volumes: TrainingVolumes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    config = tiny()
    config.logger.wandb = True
    with pytest.raises(InputError, match="wandb is not installed"):
        fit(config, train_volumes, val_volumes, tmp_path)


def test_any_logger_of_lightnings_by_its_class(tmp_path: Path) -> None:
    config = ExperimentConfig()
    config.logger = LoggerConfig(
        csv=False,
        tensorboard=False,
        other={"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": str(tmp_path), "name": "curves"},
    )
    (logger,) = build_loggers(config, tmp_path, 0)
    assert (type(logger), logger.name) == (CSVLogger, "curves")


@pytest.mark.parametrize(
    ("other", "fault"),
    [
        ({"_target_": "lightning.pytorch.loggers.NoSuchLogger"}, "NoSuchLogger"),
        ({"_target_": "lightning.pytorch.loggers.CSVLogger", "colour": 1}, "colour"),
        ({"_target_": "pathlib.Path"}, "Path is no logger"),
        ({"name": "curves"}, "_target_"),
    ],
)
def test_what_is_no_logger_is_one_clear_error(tmp_path: Path, other: dict[str, Any], fault: str) -> None:
    config = ExperimentConfig()
    config.logger = LoggerConfig(csv=False, tensorboard=False, other=other)
    with pytest.raises(InputError, match=fault):
        build_loggers(config, tmp_path, 0)


def test_wandb_gets_project_and_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setitem(build_loggers.__globals__, "WandbLogger", lambda **words: asked.update(words))
    config = tiny()
    config.logger.wandb, config.logger.project, config.logger.group = True, "mine", "folds"
    build_loggers(config, tmp_path, 0)
    assert (asked["project"], asked["group"]) == ("mine", "folds")


def test_device_that_is_not_there(
    train_volumes: TrainingVolumes, val_volumes: TrainingVolumes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"trainer: .*(?i:cuda|gpu)"):
        fit(tiny(accelerator="cuda"), train_volumes, val_volumes, tmp_path)


def test_progress_lines_go_to_stderr(
    train_volumes: TrainingVolumes, val_volumes: TrainingVolumes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(tiny(max_steps=1), train_volumes, val_volumes, tmp_path)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("step 1/1  epoch 0.3  loss ")


@pytest.mark.parametrize("name", ["lightning", "lightning.pytorch", "lightning.fabric"])
def test_errors_of_lightning_go_to_a_stderr_that_is_open(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    imported_under = io.StringIO()  # as the runner of a command puts in place of stderr
    logger = logging.getLogger(name)
    monkeypatch.setattr(logger, "handlers", [logging.StreamHandler(imported_under)])
    monkeypatch.setattr(logger, "propagate", False)
    imported_under.close()
    with quiet_lightning():
        logger.info("advice")
        logger.error("fault")
    assert capsys.readouterr().err == "fault\n"
