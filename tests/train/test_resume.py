"""A run that was stopped, however, goes on to the weights of one that was not."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import load, table, tiny

from brainuad.errors import InputError
from brainuad.train import fit, is_complete
from brainuad.train.callbacks import Epochs
from brainuad.train.fit import caught_interrupts
from brainuad.train.module import Training
from brainuad.train.reports import Progress
from brainuad.train.slices import TrainingVolumes


def interrupt_after(step: int, monkeypatch: pytest.MonkeyPatch, stop: Callable[[Epochs], None]) -> None:
    """Call ``stop`` when step ``step`` is done."""
    original = Epochs.on_train_batch_end

    def hook(self: Epochs, trainer: Any, *args: Any) -> None:
        if trainer.global_step == step:
            stop(self)
        original(self, trainer, *args)

    monkeypatch.setattr(Epochs, "on_train_batch_end", hook)


def assert_same_training(first: Path, second: Path) -> None:
    a, b = load(first / "checkpoints" / "last.ckpt"), load(second / "checkpoints" / "last.ckpt")
    assert a["global_step"] == b["global_step"] == 6
    assert {name.split(".")[0] for name in a["state_dict"]} == {"model", "average"}
    for name, value in a["state_dict"].items():
        assert torch.equal(value, b["state_dict"][name]), name
    for number, state in a["optimizer_states"][0]["state"].items():
        for name, value in state.items():
            assert torch.equal(value, b["optimizer_states"][0]["state"][number][name])
    assert a["callbacks"] == b["callbacks"]
    assert [row["val_loss"] for row in table(first)] == [row["val_loss"] for row in table(second)]


@pytest.mark.parametrize("step", [2, 3, 4])
def test_interrupted_and_resumed_equals_unbroken(
    step: int,
    unbroken: Path,
    train_volumes: TrainingVolumes,
    val_volumes: TrainingVolumes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(step)  # the global generator has no say
    with monkeypatch.context() as patch:
        interrupt_after(step, patch, lambda epochs: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(KeyboardInterrupt):
            fit(tiny(), train_volumes, val_volumes, tmp_path)
    assert load(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == step
    assert not is_complete(tiny(), tmp_path)
    torch.manual_seed(100 + step)
    fit(tiny(resume=True), train_volumes, val_volumes, tmp_path)
    assert_same_training(unbroken, tmp_path)


@pytest.mark.parametrize(("step", "saved"), [(2, 3), (6, 6)])
def test_a_signal_that_comes_when_the_step_has_looked_for_one(
    step: int,
    saved: int,
    train_volumes: TrainingVolumes,
    val_volumes: TrainingVolumes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def hook(self: Progress, trainer: Any, *args: Any) -> None:
        if trainer.global_step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Progress, "on_train_batch_end", hook)
    with pytest.raises(KeyboardInterrupt):
        fit(tiny(), train_volumes, val_volumes, tmp_path)
    assert load(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == saved
    assert is_complete(tiny(), tmp_path) == (saved == 6)


def test_a_checkpoint_from_another_device_goes_on_the_same(
    unbroken: Path, train_volumes: TrainingVolumes, val_volumes: TrainingVolumes, tmp_path: Path
) -> None:
    fit(tiny(max_epochs=1), train_volumes, val_volumes, tmp_path)
    last = tmp_path / "checkpoints" / "last.ckpt"
    checkpoint = load(last)
    (optimiser,) = checkpoint["optimizer_states"]
    weights = [value for name, value in checkpoint["state_dict"].items() if name.startswith("model.")]
    assert any(not weight.is_contiguous() for weight in weights)  # channels-last
    for group in optimiser["param_groups"]:
        group["fused"] = True
    for moments in optimiser["state"].values():
        for name in ("exp_avg", "exp_avg_sq"):
            moments[name] = moments[name].contiguous()
    torch.save(checkpoint, last)
    fit(tiny(resume=True), train_volumes, val_volumes, tmp_path)
    assert_same_training(unbroken, tmp_path)


def test_a_loss_that_is_not_finite_ends_training(
    train_volumes: TrainingVolumes, val_volumes: TrainingVolumes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Training.training_step

    def overflow(self: Training, batch: int, batch_idx: int) -> torch.Tensor:
        loss = original(self, batch, batch_idx) * (math.inf if self.global_step == 4 else 1)
        self.epoch_losses[-1] = loss.detach()
        return loss

    monkeypatch.setattr(Training, "training_step", overflow)
    config = tiny()
    config.callbacks.checkpoint_every_seconds = 0
    with pytest.raises(InputError, match=r"NaN or infinite at step 5\. .*lr, or with trainer\.precision=32"):
        fit(config, train_volumes, val_volumes, tmp_path)
    last = load(tmp_path / "checkpoints" / "last.ckpt")
    assert last["global_step"] == 4
    assert all(value.isfinite().all() for value in last["state_dict"].values())
    assert not is_complete(tiny(), tmp_path)
    assert [row["step"] for row in table(tmp_path)] == ["3"]


def test_longer_run_continues_a_finished_one(
    unbroken: Path, train_volumes: TrainingVolumes, val_volumes: TrainingVolumes, tmp_path: Path
) -> None:
    fit(tiny(max_epochs=1), train_volumes, val_volumes, tmp_path)
    assert is_complete(tiny(max_epochs=1), tmp_path)
    fit(tiny(resume=True), train_volumes, val_volumes, tmp_path)
    assert_same_training(unbroken, tmp_path)


def test_steps_limit_inside_an_epoch(
    unbroken: Path, train_volumes: TrainingVolumes, val_volumes: TrainingVolumes, tmp_path: Path
) -> None:
    fit(tiny(max_steps=4), train_volumes, val_volumes, tmp_path)
    assert load(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 4
    fit(tiny(resume=True), train_volumes, val_volumes, tmp_path)
    weights, expected = (load(f / "checkpoints" / "last.ckpt")["state_dict"] for f in (tmp_path, unbroken))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_other_settings_or_data_are_refused(
    unbroken: Path, train_volumes: TrainingVolumes, val_volumes: TrainingVolumes, tmp_path: Path
) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").symlink_to(unbroken / "checkpoints" / "last.ckpt")
    other = tiny(resume=True)
    other.datamodule.cfg.lr, other.seed = 2e-3, 1
    with pytest.raises(InputError, match=r"datamodule\.cfg\.lr=0\.001 there, 0\.002 here.*seed=3141 there"):
        fit(other, train_volumes, val_volumes, tmp_path)
    pairs = (train_volumes, val_volumes)
    darker = [TrainingVolumes(volumes.images * 0.5, volumes.masks) for volumes in pairs]
    smaller = [TrainingVolumes(volumes.images, volumes.masks & (volumes.images > 0.5)) for volumes in pairs]
    for train, val in (
        (darker[0], val_volumes),
        (train_volumes, darker[1]),  # the best loss would be of other scans
        (smaller[0], val_volumes),  # other slices would be drawn
        (train_volumes, smaller[1]),
    ):
        with pytest.raises(InputError, match="other volumes"):
            fit(tiny(resume=True), train, val, tmp_path)


def test_second_interrupt_acts_as_usual() -> None:
    # a process that was started in the background may have been told to ignore SIGINT
    outside = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with caught_interrupts() as event:
            signal.raise_signal(signal.SIGINT)
            assert event.is_set()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, outside)
