"""The best model is kept in memory, and written before the last checkpoint, however the run ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from tiny_training import load, tiny

import brainuad.train.callbacks
from brainuad.config import ExperimentConfig
from brainuad.errors import InputError
from brainuad.modelfile import read_model, write_model
from brainuad.train import fit
from brainuad.train.callbacks import Epochs
from brainuad.train.module import Training
from brainuad.train.slices import TrainingVolumes

LOSSES = {1: 3.0, 2: 2.0, 3: 1.0, 4: 4.0}  # the third of four epochs, which ends with step 9, is the best


class Killed(BaseException):
    """Stands for the end of the process."""


def four_epochs(**changes: Any) -> ExperimentConfig:
    return tiny(max_epochs=4, **changes)


@pytest.fixture(autouse=True)
def averages(monkeypatch: pytest.MonkeyPatch) -> dict[int, dict[str, torch.Tensor]]:
    """Have losses as above; the averaged weights by epoch."""
    weights: dict[int, dict[str, torch.Tensor]] = {}

    def loss(self: Training, epoch: int) -> float:
        weights[epoch] = {name: value.clone() for name, value in self.average.state_dict().items()}
        return LOSSES[epoch]

    monkeypatch.setattr(Training, "validation_loss", loss)
    return weights


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What was written, in order: "model" with its step, "last" with the step of training."""
    events: list[tuple[str, int]] = []
    save_checkpoint = Trainer.save_checkpoint

    def noted_model(*args: Any, **options: Any) -> None:
        events.append(("model", options["provenance"]["step"]))
        write_model(*args, **options)

    def noted_last(self: Trainer, path: Any, **options: Any) -> None:
        events.append((Path(path).stem, self.global_step))
        save_checkpoint(self, path, **options)

    monkeypatch.setattr(brainuad.train.callbacks, "write_model", noted_model)
    monkeypatch.setattr(Trainer, "save_checkpoint", noted_last)
    return events


def model_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "model").iterdir()}


def on_step(monkeypatch: pytest.MonkeyPatch, actions: dict[int, Callable[[Epochs], None]]) -> None:
    """Call an action at the end of a step, before anything else happens there."""
    original = Epochs.on_train_batch_end

    def hook(self: Epochs, trainer: Any, *args: Any) -> None:
        actions.get(trainer.global_step, lambda epochs: None)(self)
        original(self, trainer, *args)

    monkeypatch.setattr(Epochs, "on_train_batch_end", hook)


def let_the_time_pass(epochs: Epochs) -> None:
    epochs.saved -= 3600


def die(epochs: Epochs) -> None:
    raise Killed


def test_the_best_weights_are_kept_and_written_at_the_end(
    train_volumes: TrainingVolumes,
    val_volumes: TrainingVolumes,
    tmp_path: Path,
    averages: dict[int, dict[str, torch.Tensor]],
    written: list[tuple[str, int]],
) -> None:
    fit(four_epochs(), train_volumes, val_volumes, tmp_path)
    assert written == [("model", 3), ("model", 9), ("last", 12)]
    model, _, _, provenance, _ = read_model(tmp_path / "model")
    assert (provenance["epoch"], provenance["step"], provenance["validation_loss"]) == (3, 9, 1.0)
    found = model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in averages[3].items())
    assert not all(torch.equal(found[name], value) for name, value in averages[4].items())


def test_without_averaging_later_steps_leave_the_best_weights_alone(
    train_volumes: TrainingVolumes,
    val_volumes: TrainingVolumes,
    tmp_path: Path,
    averages: dict[int, dict[str, torch.Tensor]],
) -> None:
    fit(four_epochs(ema_decay=0.0), train_volumes, val_volumes, tmp_path)
    found = read_model(tmp_path / "model")[0].state_dict()
    assert all(torch.equal(found[name], value) for name, value in averages[3].items())


def test_an_error_writes_it(
    train_volumes: TrainingVolumes,
    val_volumes: TrainingVolumes,
    tmp_path: Path,
    written: list[tuple[str, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def diverge(epochs: Epochs) -> None:
        raise InputError("training", "diverged", "Start a new run")

    on_step(monkeypatch, {11: diverge})
    with pytest.raises(InputError, match="diverged"):
        fit(four_epochs(), train_volumes, val_volumes, tmp_path)
    assert written == [("model", 3), ("model", 9)]


def test_the_clock_writes_it_before_the_last_checkpoint(
    train_volumes: TrainingVolumes,
    val_volumes: TrainingVolumes,
    tmp_path: Path,
    written: list[tuple[str, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_step(monkeypatch, dict.fromkeys((4, 7, 8), let_the_time_pass))
    fit(four_epochs(), train_volumes, val_volumes, tmp_path)
    assert written == [("model", 3), ("last", 4), ("model", 6), ("last", 7), ("last", 8), ("model", 9), ("last", 12)]


def test_after_each_step(
    train_volumes: TrainingVolumes, val_volumes: TrainingVolumes, tmp_path: Path, written: list[tuple[str, int]]
) -> None:
    config = four_epochs()
    config.callbacks.checkpoint_every_seconds = 0
    fit(config, train_volumes, val_volumes, tmp_path)
    assert [step for name, step in written if name == "last"] == list(range(1, 13))
    for step in (3, 6, 9):
        assert written[written.index(("last", step)) - 1] == ("model", step)


@pytest.mark.parametrize(
    ("death", "model_step", "last_step"),
    [(2, None, None), (5, 3, None), (8, 6, 7), (10, 6, 7), (11, 9, 7)],
    ids=["early", "before_last", "before_the_best", "best_in_memory", "best_written_last_not"],
)
def test_killed_and_resumed_ends_with_the_model_of_an_unbroken_run(
    train_volumes: TrainingVolumes,
    val_volumes: TrainingVolumes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    death: int,
    model_step: int | None,
    last_step: int | None,
) -> None:
    fit(four_epochs(), train_volumes, val_volumes, tmp_path / "unbroken")
    folder = tmp_path / "killed"
    with monkeypatch.context() as patch:
        actions: dict[int, Callable[[Epochs], None]] = {7: let_the_time_pass, death: die}
        if model_step == 9:  # at the time of saving, between the two

            def dies_between(epochs: Epochs) -> None:
                let_the_time_pass(epochs)
                patch.setattr(Trainer, "save_checkpoint", lambda *args, **options: die(epochs))

            actions[death] = dies_between
        on_step(patch, actions)
        with pytest.raises(Killed):
            fit(four_epochs(), train_volumes, val_volumes, folder)
    last = folder / "checkpoints" / "last.ckpt"
    assert (load(last)["global_step"] if last.exists() else None) == last_step
    there = (folder / "model").exists()
    assert (read_model(folder / "model")[3]["step"] if there else None) == model_step
    fit(four_epochs(resume=True), train_volumes, val_volumes, folder)
    assert model_files(folder) == model_files(tmp_path / "unbroken")
