"""Folders of runs: where a new one goes, which one is resumed, and where in one the trained model is."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from brainuad.config import ExperimentConfig, differing_settings, flat_settings
from brainuad.errors import InputError
from brainuad.overrides import to_experiment


def _run_folder(stamp: str, *, _root_: DictConfig) -> str:
    """Return the folder of a run: the one to resume, or a new one named by the time ``stamp``."""
    config = to_experiment(OmegaConf.masked_copy(_root_, [str(key) for key in _root_ if key != "hydra"]))
    if config.resume:
        with suppress(InputError):  # Hydra would print a traceback; the job reports it
            earlier = newest_run(config)
            if earlier is not None:
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
        InputError: There are runs, but all with other settings.
    """
    mismatch: InputError | None = None
    for folder in sorted(runs_folder(config).glob("*/"), reverse=True):
        stored = folder / ".hydra" / "config.yaml"
        if not stored.is_file() or not any(folder.glob("fold*/checkpoints/last.ckpt")):
            continue
        loaded = OmegaConf.load(stored)
        assert isinstance(loaded, DictConfig)
        saved = to_experiment(loaded)
        if saved.onlyEval:
            continue
        differing = differing_settings(flat_settings(saved), flat_settings(config))
        if not differing:
            return folder
        mismatch = mismatch or InputError(
            folder,
            f"was run with other settings ({'; '.join(differing)})",
            "Repeat them, or drop resume=True",
        )
    if mismatch:
        raise mismatch
    return None


def has_folds(config: ExperimentConfig) -> bool:
    """Whether ``load_checkpoint`` is a run, which has a model a fold, rather than one model."""
    return (Path(config.load_checkpoint) / f"fold{config.start_fold}").is_dir()


def find_model(folder: Path, fold: int) -> Path:
    """Return the exported model in the folder of a model, of a fold or of a run.

    Raises:
        InputError: There is none.
    """
    candidates = (folder / f"fold{fold}" / "model", folder / "model", folder)
    for candidate in candidates:
        if (candidate / "model.safetensors").is_file() and (candidate / "config.yaml").is_file():
            return candidate
    looked = ", ".join(str(candidate) for candidate in candidates)
    raise InputError(
        folder,
        f"holds no trained model (looked for config.yaml in {looked})",
        "Give the folder of a model or a run",
    )
