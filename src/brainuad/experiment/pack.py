"""Pack the prepared scans of a training into one file, to copy to the machine that trains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from brainuad.config import ExperimentConfig
from brainuad.data.packed import SUFFIX, PackedCohort, PackedScan, is_packed, pack_scans, write_packed
from brainuad.errors import InputError
from brainuad.experiment.fold import fold_cases, healthy, load_with_progress
from brainuad.experiment.settings import check_settings


def pack_data(config: ExperimentConfig, output: str | Path) -> PackedCohort:
    """Prepare the training and validation scans of ``brainuad train``, and write them as one file.

    Args:
        config: The experiment; its first fold is packed.
        output: The file, whose name ends in .npz.

    Raises:
        InputError: A setting or the data cannot be used, or the file cannot be written.
    """
    if not is_packed(output):
        raise InputError(output, f"does not end in {SUFFIX}", f"Name it, say, train{SUFFIX}")
    if is_packed(config.data_dir):
        raise InputError(config.data_dir, "is packed already", "Give the data it was packed from")
    check_settings(config)
    fold = config.folds()[0]
    cases = fold_cases(replace(config, onlyEval=False), fold)
    chosen = [*healthy(cases, "train"), *healthy(cases, "val")]
    prepared = load_with_progress(chosen, config.datamodule.cfg)
    scans = [PackedScan(case.subject, case.dataset, case.split) for case in chosen]
    volumes = ((case.image, case.mask) for case in prepared)
    cohort = pack_scans(scans, volumes, config.datamodule.cfg, fold)
    write_packed(output, cohort)
    return cohort
