"""The scans of one fold: which they are, and their volumes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from brainuad.config import DataConfig, ExperimentConfig, differences
from brainuad.console import progress
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
    here = {f"datamodule.cfg.{name}": getattr(config.datamodule.cfg, name) for name in SETTINGS} | {"fold": fold}
    there = {f"datamodule.cfg.{name}": packed.settings[name] for name in SETTINGS} | {"fold": packed.fold}
    if differing := differences(there, here, here):
        fault = f"was packed with other settings ({differing})"
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
    from brainuad.train.slices import stack_volumes  # Lightning is slow to import

    data = config.datamodule.cfg
    packed = read_packed(config.data_dir) if is_packed(config.data_dir) else None

    def volumes(split: str) -> TrainingVolumes:
        if packed is not None:
            chosen = packed.split(split, SAMPLE_SUBJECTS if data.sample_set else None)
            return stack_volumes([packed.pair(index) for index in chosen])
        return stack_volumes([(scan.image, scan.mask) for scan in load_with_progress(healthy(cases, split), data)])

    return volumes("train"), volumes("val")


def load_with_progress(cases: Sequence[Case], config: DataConfig) -> list[PreparedCase]:
    """Load cases, with a bar on stderr if that is a terminal."""
    with progress("Loading scans", len(cases)) as advance:
        return load_cohort(cases, config, report=lambda case: advance())
