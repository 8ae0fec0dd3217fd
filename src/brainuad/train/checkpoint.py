"""Checkpoints: written whole, read without running code, continued only with the settings they began with."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from brainuad.config import ExperimentConfig, differing_settings
from brainuad.errors import InputError
from brainuad.files import atomic_path


@contextmanager
def _opened(path: Path) -> Iterator[dict[str, Any]]:
    """Read a checkpoint; InputError if that, or the block's use of its contents, fails."""
    try:
        yield torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, LookupError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise InputError(path, "is damaged or not a checkpoint of brainuad", "Start a new run") from error


def check_resumable(path: Path, config: ExperimentConfig, data_hash: str) -> int:
    """Return the step of a checkpoint, after making sure that training may continue from it.

    Args:
        path: The checkpoint.
        config: The settings to continue with.
        data_hash: Hash of the training and validation volumes to continue with.

    Raises:
        InputError: The file cannot be read, or belongs to other settings or other data.
    """
    with _opened(path) as saved:
        step, saved_by = int(saved["global_step"]), saved["brainuad"]
        settings, saved_hash = saved_by["settings"], saved_by.get("data")
    if differing := differing_settings(settings, config):
        fault = f"was trained with other settings ({differing})"
        raise InputError(path, fault, "Repeat its settings to resume, or start a new run")
    if saved_hash is None:
        fault = "is of an older version, which did not note its validation volumes"
        raise InputError(path, fault, "Start a new run")
    if data_hash != saved_hash:
        raise InputError(path, "was trained on other volumes", "Resume with the same data, or start a new run")
    return step


def seconds_used(run_dir: Path) -> float:
    """Return the time that a training by the clock has used up to its last checkpoint; 0 where there is none.

    Raises:
        InputError: The checkpoint cannot be read.
    """
    path = run_dir / "checkpoints" / "last.ckpt"
    if not path.is_file():
        return 0.0
    with _opened(path) as saved:
        return max(float(state.get("used", 0.0)) for state in saved["callbacks"].values())


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames; reads tensors and plain values, never code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path``, all or nothing."""
        with atomic_path(path) as temporary:
            try:
                torch.save(checkpoint, temporary)
            except RuntimeError as error:  # what it makes of a full disk
                raise OSError(str(error).partition("\n")[0]) from error

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        """Read a checkpoint."""
        return dict(torch.load(path, map_location="cpu", weights_only=True))
