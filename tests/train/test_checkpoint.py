from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from tiny_training import tiny

import brainuad.train.callbacks
from brainuad.errors import InputError
from brainuad.train import fit
from brainuad.train.checkpoint import AtomicCheckpointIO
from brainuad.train.slices import TrainingVolumes


def test_killed_while_writing_keeps_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)

    def dies(checkpoint: Any, target: Path) -> None:
        Path(target).write_bytes(b"half a check")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", dies)
    with pytest.raises(KeyboardInterrupt):
        AtomicCheckpointIO().save_checkpoint({"step": 2}, path)
    assert AtomicCheckpointIO().load_checkpoint(path) == {"step": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def test_checkpoints_run_no_code(train_volumes: TrainingVolumes, val_volumes: TrainingVolumes, tmp_path: Path) -> None:
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    torch.save({"global_step": 1, "brainuad": Trap(tmp_path / "trapped")}, last)
    for damage in (None, last.read_bytes()[:100], b"", pickle.dumps(Trap(tmp_path / "trapped"))):
        if damage is not None:
            last.write_bytes(damage)
        with pytest.raises(InputError, match=r"last\.ckpt: is damaged"):
            fit(tiny(resume=True), train_volumes, val_volumes, tmp_path / "run")
    assert not (tmp_path / "trapped").exists()


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """At which steps the last checkpoint was written."""
    steps: list[int] = []
    original = AtomicCheckpointIO.save_checkpoint

    def noted(self: AtomicCheckpointIO, checkpoint: dict[str, Any], path: Any, **options: Any) -> None:
        if Path(path).name == "last.ckpt":
            steps.append(checkpoint["global_step"])
        original(self, checkpoint, path, **options)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", noted)
    return steps


@pytest.mark.parametrize(("seconds", "steps"), [(0.0, [1, 2, 3, 4, 5, 6]), (3600.0, [6])])
def test_checkpoints_by_the_clock(
    train_volumes: TrainingVolumes,
    val_volumes: TrainingVolumes,
    tmp_path: Path,
    written: list[int],
    seconds: float,
    steps: list[int],
) -> None:
    config = tiny()
    config.callbacks.checkpoint_every_seconds = seconds
    fit(config, train_volumes, val_volumes, tmp_path)
    assert written == steps


def test_several_devices_ask_each_other_now_and_then(
    train_volumes: TrainingVolumes,
    val_volumes: TrainingVolumes,
    tmp_path: Path,
    written: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Trainer, "world_size", 2)
    monkeypatch.setattr(brainuad.train.callbacks, "STEPS_BETWEEN_QUESTIONS", 4)
    config = tiny()
    config.callbacks.checkpoint_every_seconds = 1e-9
    fit(config, train_volumes, val_volumes, tmp_path)
    assert written == [4, 6]
