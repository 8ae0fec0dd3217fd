"""Whether a checkpoint may be continued with the settings at hand, and how trained weights leave training."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import nn

from brainuad._version import __version__
from brainuad.config import ExperimentConfig
from brainuad.errors import InputError
from brainuad.files import atomic_path, write_text

# settings that may differ between the two halves of a resumed run, because its steps do not depend on them
FREE_ON_RESUME = (
    "resume",
    "data_dir",
    "log_dir",
    "name",
    "start_fold",
    "num_folds",
    "onlyEval",
    "load_checkpoint",
    "allow_leaks",
    "callbacks.",
    "logger.",
    "trainer.max_epochs",
    "trainer.max_steps",
    "trainer.check_val_every_n_epoch",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "datamodule.cfg.num_workers",
    "datamodule.cfg.cache_dir",
    "model.cfg.test_timesteps",
    "model.cfg.noise_ensemble",
    "model.cfg.step_ensemble",
    "model.cfg.noise_draws",
    "model.cfg.sigma_ens",
)


def flat_settings(config: ExperimentConfig) -> dict[str, Any]:
    """Return every setting that has a value under its dotted name, as plain YAML values."""
    # through OmegaConf, so that tuples and lists compare equal
    nested = OmegaConf.to_container(OmegaConf.create(dataclasses.asdict(config)))

    def walk(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in node.items():
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{key}.")
            elif value != "???":
                yield prefix + key, value

    return dict(walk(nested, ""))


def check_resumable(path: Path, config: ExperimentConfig, data_hash: str) -> int:
    """Return the step of a checkpoint, after making sure that training may continue from it.

    Args:
        path: The checkpoint.
        config: The settings to continue with.
        data_hash: Hash of the training volumes to continue with.

    Raises:
        InputError: The file cannot be read, or belongs to other settings or other data.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        step, saved_by = int(saved["global_step"]), saved["brainuad"]
        settings, saved_hash = saved_by["settings"], saved_by["training data"]
    except (OSError, RuntimeError, LookupError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise InputError(path, "is damaged or not a checkpoint of brainuad", "Start a new run") from error
    here = flat_settings(config)
    differing = [
        f"{key}={settings.get(key)} there, {here.get(key)} here"
        for key in sorted(settings.keys() | here.keys())
        if settings.get(key) != here.get(key) and not key.startswith(FREE_ON_RESUME)
    ]
    if differing:
        fault = f"was trained with other settings ({'; '.join(differing)})"
        raise InputError(path, fault, "Repeat its settings to resume, or start a new run")
    if data_hash != saved_hash:
        raise InputError(
            path, "was trained on other volumes", "Resume with the same data, or start a new run"
        )
    return step


def export_model(model: nn.Module, config: ExperimentConfig, folder: Path) -> None:
    """Write ``model.safetensors`` and ``config.yaml`` (settings of model and data) to ``folder``."""
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with atomic_path(folder / "model.safetensors") as temporary:
        save_file(weights, temporary)
    data = dataclasses.asdict(config.datamodule.cfg)
    del data["cache_dir"], data["num_workers"]
    settings = {
        "version": __version__,
        "model": dataclasses.asdict(config.model.cfg),
        "data": data,
        "seed": config.seed,
        "reference": config.reference,
    }
    write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(settings)))
