"""The scans of one fold: which they are, and their volumes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress

from brainuad.config import DataConfig, ExperimentConfig
from brainuad.data.bias import warn_of_other_bias_levels
from brainuad.data.cohort import Case, read_cases
from brainuad.data.leaks import find_leaks, leak_free
from brainuad.data.loading import PreparedCase, load_cohort
from brainuad.data.packed import SETTINGS, is_packed, read_packed
from brainuad.errors import InputError

if TYPE_CHECKING:
    from brainuad.train.slices import TrainingVolumes

logger = logging.getLogger(__name__)

SAMPLE_SUBJECTS = 4  # subjects of every split, with sample_set


def fold_cases(config: ExperimentConfig, fold: int) -> list[Case]:
    """Return the cases of a fold, without leaks unless the settings keep them; [] for packed data.

    Raises:
        InputError: The data cannot be read; a subject is in two splits, and leaks are not allowed; there is
            no healthy scan to train on; or the data were packed with other settings.
    """
    if is_packed(config.data_dir):
        check_packed(config, fold)
        return []  # packed data have no files, and no test scans
    cases = read_cases(config.data_dir, config.datamodule.cfg.mode, fold, training=not config.onlyEval)
    leaks = find_leaks(cases)
    shared = [str(leak) for leak in leaks if not leak.duplicated]
    if leaks and config.datamodule.cfg.leak_free:
        kept = leak_free(cases)
        logger.info(
            "Fold %d: left out %d of %d rows (%d subjects were in two splits, %d images were listed twice)",
            fold,
            len(cases) - len(kept),
            len(cases),
            len(shared),
            len(leaks) - len(shared),
        )
        cases = kept
    elif shared and not config.allow_leaks:
        fault = f"fold {fold} has {len(shared)} subjects in two splits ({shared[0]}, ...)"
        remedy = "Set datamodule.cfg.leak_free=True to leave them out, or allow_leaks=True (--allow-leaks)"
        raise InputError(config.data_dir, fault, remedy)
    elif shared:
        logger.warning("Fold %d: goes on although %d subjects are in two splits", fold, len(shared))
    if config.datamodule.cfg.sample_set:
        cases = first_subjects(cases)
    if config.onlyEval:
        return cases
    for split in ("train", "val"):
        if not healthy(cases, split):
            fault = f"fold {fold} has no healthy scan in split {split!r}"
            raise InputError(config.data_dir, fault, "Training needs rows with label 0 in train and val")
    trained = [case for case in cases if case.split != "test"]
    warn_of_other_bias_levels(trained, config.datamodule.cfg.bias_levels)
    return cases


def check_packed(config: ExperimentConfig, fold: int) -> None:
    """Raise InputError unless packed data fit a training with these settings."""
    if config.onlyEval:
        raise InputError(config.data_dir, "holds no test scans", "Give the data that it was packed from")
    packed = read_packed(config.data_dir)
    here = {f"datamodule.cfg.{name}": getattr(config.datamodule.cfg, name) for name in SETTINGS}
    there = {f"datamodule.cfg.{name}": value for name, value in packed.settings.items()}
    here["fold"], there["fold"] = fold, packed.fold
    differing = [f"{name}={there[name]} there, {here[name]} here" for name in here if there[name] != here[name]]
    if differing:
        fault = f"was packed with other settings ({'; '.join(differing)})"
        raise InputError(config.data_dir, fault, "Repeat them, or pack the data anew with these")


def first_subjects(cases: Sequence[Case]) -> list[Case]:
    """Return the first few cases of every split of every data set."""
    kept: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        kept.setdefault((case.dataset, case.split), []).append(case)
    return [case for group in kept.values() for case in group[:SAMPLE_SUBJECTS]]


def healthy(cases: Sequence[Case], split: str) -> list[Case]:
    """Return the healthy cases of a split, from the data sets used for training."""
    datasets = {case.dataset for case in cases if case.split == "train"}
    return [case for case in cases if case.split == split and case.healthy and case.dataset in datasets]


def training_volumes(config: ExperimentConfig, cases: Sequence[Case]) -> tuple[TrainingVolumes, TrainingVolumes]:
    """Return the training and validation volumes, from a fold's cases or from packed data."""
    from brainuad.train.slices import stack_volumes

    if not is_packed(config.data_dir):
        train, val = (load_volumes(healthy(cases, split), config.datamodule.cfg) for split in ("train", "val"))
        return train, val
    packed = read_packed(config.data_dir)
    most = SAMPLE_SUBJECTS if config.datamodule.cfg.sample_set else None
    train, val = (
        stack_volumes([packed.pair(index) for index in packed.split(split, most)]) for split in ("train", "val")
    )
    return train, val


def load_volumes(cases: Sequence[Case], config: DataConfig) -> TrainingVolumes:
    """Load cases with a progress bar into one tensor."""
    from brainuad.train.slices import stack_volumes  # Lightning is slow to import

    return stack_volumes([(case.image, case.mask) for case in load_with_progress(cases, config)])


def load_with_progress(cases: Sequence[Case], config: DataConfig) -> list[PreparedCase]:
    """Load cases, with a bar on stderr if that is a terminal."""
    with progress_bar() as bar:
        task = bar.add_task("Loading scans", total=len(cases))
        return load_cohort(cases, config, report=lambda case: bar.advance(task))


def progress_bar() -> Progress:
    """Return a bar on stderr that shows on a terminal only."""
    return Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
