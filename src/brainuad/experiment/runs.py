"""Folders of runs: name new ones, find the run to resume, and find the trained model in a run."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from brainuad.config import (
    DataNode,
    ExperimentConfig,
    ModelNode,
    differences,
    differing_settings,
    flat_settings,
    has_setting,
    untrained_settings,
)
from brainuad.errors import InputError
from brainuad.experiment.overrides import GROUPS
from brainuad.experiment.settings import read_settings, to_experiment
from brainuad.modelfile import read_model

# settings of datamodule.cfg that a trained model depends on
GRID_SETTINGS = ("imageDim", "rescaleFactor", "affine", "smoothing_iterations")


def _run_folder(stamp: str, *, _root_: DictConfig) -> str:
    """Return the folder of a run: the one to resume, or a new one named by the time ``stamp``."""
    config = to_experiment(OmegaConf.masked_copy(_root_, [str(key) for key in _root_ if key != "hydra"]))
    if config.resume:
        with suppress(InputError):  # Hydra would print a traceback; the job reports it
            if earlier := newest_run(config):
                return str(earlier.resolve())
    if _root_.hydra.mode is not None and _root_.hydra.mode.name == "MULTIRUN":
        stamp += f"_job{_root_.hydra.job.num}"
    return str((runs_folder(config) / stamp).resolve())


OmegaConf.register_new_resolver("brainuad.run_folder", _run_folder, replace=True)


def runs_folder(config: ExperimentConfig) -> Path:
    """Return the folder that holds all runs of a name, mode and seed."""
    return Path(config.log_dir) / config.name / config.datamodule.cfg.mode / f"seed{config.seed}"


def newest_run(config: ExperimentConfig) -> Path | None:
    """Return the newest run with the same name, mode, seed and settings, or None if there is no run.

    Raises:
        InputError: There are runs, but all have other settings, or some that this version does not know.
    """
    mismatch: InputError | None = None
    for folder in sorted(runs_folder(config).glob("*/"), reverse=True):
        stored = folder / ".hydra" / "config.yaml"
        begun = [*folder.glob("fold*/checkpoints/last.ckpt"), *folder.glob("fold*/training.json")]
        if not stored.is_file() or not begun:
            continue
        try:
            saved = read_settings(stored)
        except InputError as error:
            mismatch = mismatch or error
            continue
        if saved.onlyEval:
            continue
        differing = differing_settings(flat_settings(saved), config)
        if not differing:
            return folder
        mismatch = mismatch or InputError(
            folder, f"was run with other settings ({differing})", "Repeat them, or drop resume=True"
        )
    if mismatch:
        raise mismatch
    return None


def with_saved_settings(config: ExperimentConfig, folder: Path, typed: Sequence[str]) -> ExperimentConfig:
    """Return the settings to evaluate a trained model with: its own, except for those that the user typed.

    Args:
        config: The settings, most of them from presets.
        folder: The model's folder.
        typed: Names of the settings and groups that the user gave. A group ("model=lite") states what the
            model must be, and changes nothing about its use.

    Raises:
        InputError: The model cannot be read, is of the other modality, or differs from the typed settings.
    """
    _, model, data, _, _ = read_model(folder)
    mode = config.datamodule.cfg.mode
    if data.mode != mode:
        fault = f"was trained on {data.mode}, and datamodule.cfg.mode is {mode}"
        raise InputError(folder, fault, f"Add datamodule.cfg.mode={data.mode}, or give a model of {mode}")
    free = untrained_settings(model)
    trained = [f"model.cfg.{field.name}" for field in fields(model) if field.name not in free]
    trained += [f"datamodule.cfg.{name}" for name in GRID_SETTINGS]
    there = flat_settings(ExperimentConfig(ModelNode(model), DataNode(data)))
    asked = [name for name in trained if _is_typed(name, typed)]
    if differing := differences(there, flat_settings(config), asked):
        fault = f"was trained with other settings ({differing})"
        raise InputError(folder, fault, "Leave them out: a model is evaluated with its own")
    settings = [name for name in typed if name not in GROUPS]
    wanted = {
        name: getattr(config.model.cfg, name)
        for name in free
        if _is_typed(f"model.cfg.{name}", settings) and has_setting(config.model.cfg, name)
    }
    return replace(config, model=ModelNode(replace(model, **wanted)))


def _is_typed(name: str, typed: Sequence[str]) -> bool:
    """Return whether a setting or a node above it is among the names."""
    return any(name == given or name.startswith(f"{given}.") for given in typed)
