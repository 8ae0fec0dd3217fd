"""Prepare many scans, several at the same time."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import SimpleITK as sitk

from brainuad.data.cohort import MODALITIES
from brainuad.errors import InputError
from brainuad.files import check_writable
from brainuad.prepare.raw import RawScan
from brainuad.prepare.scan import Preparation, Row, failed_row, prepare_scan
from brainuad.prepare.tables import MANIFESTS, check_tables, write_tables
from brainuad.processes import process_pool, run_each


def prepare_cohort(
    scans: list[RawScan],
    data_dir: str | Path,
    settings: Preparation,
    *,
    jobs: int = 1,
    report: Callable[[Row], None] = lambda row: None,
) -> pd.DataFrame:
    """Prepare scans in several processes (``jobs``) and write them in the paper's layout.

    Finished scans are skipped, failed ones recorded; ``report`` is called with each subject's row as it is done.
    Writes ``Data/Train/ixi`` or ``Data/Test/<dataset>`` with ``t1``, ``t2``, ``flair``, ``mask`` and ``seg``,
    ``labels`` where the given mask is a parcellation, and one JSON sidecar per subject in ``Data/prepared/<dataset>``.
    At the end, or when interrupted, it updates these tables and keeps the rows of subjects that are not in this run:

    - ``prepare.csv``: every subject's row;
    - ``Data/splits``: the split CSVs of the paper's layout;
    - ``manifest.csv`` for T1, ``manifest_t2.csv`` and ``manifest_flair.csv``: every prepared scan with a split, of all
      data sets.

    Returns:
        One row a subject: subject, dataset, split, status ("prepared", "skipped" or "failed"), seconds, alignment
        (correlation with the atlas), brain_ml, brain (where the mask came from), left_out (images of other
        modalities that could not be prepared, and why), message.

    Raises:
        InputError: ``data_dir`` holds tables of another origin or cannot be written to, or results would overwrite a
            raw scan.
    """
    check_tables(Path(data_dir))
    root = Path(data_dir) / "Data"
    _check_apart(scans, root)
    check_writable(data_dir)
    clashes = {scan.subject: fault for scan in scans if (fault := _clash(scan, root))}
    refused = [failed_row(scan, clashes[scan.subject]) for scan in scans if scan.subject in clashes]
    for row in refused:
        report(row)
    scans = [scan for scan in scans if scan.subject not in clashes]
    rows: list[Row] = []

    def done(row: Row) -> None:
        rows.append(row)
        report(row)

    try:
        with process_pool(jobs, _one_thread, jobs) as pool:
            run_each(pool, prepare_scan, [(scan, root, settings) for scan in scans], done)
    finally:  # an interrupted run leaves its tables too
        write_tables(Path(data_dir), scans, rows)
    return pd.DataFrame(refused + rows).sort_values(["dataset", "subject"], ignore_index=True)


def _check_apart(scans: list[RawScan], root: Path) -> None:
    for scan in scans:
        results = {(root / scan.output_path(kind)).resolve() for kind in (*MODALITIES, "mask", "labels", "seg")}
        for path in (*scan.images.values(), scan.mask, scan.lesion):
            if path is not None and path.resolve() in results:
                raise InputError(path, "would be written over", "Choose another output folder")


def _clash(scan: RawScan, root: Path) -> str:
    """Return why a scan cannot be prepared beside the subject's other images, or "". Existing results stay listed.

    All images of a subject share one brain mask. Preparing another image alone would overwrite that mask.
    """
    leading = "t1" if "t1" in scan.images else scan.modality
    if (root / scan.output_path(leading)).exists():
        return ""
    for modality in MANIFESTS:
        there = root / scan.output_path(modality)
        if modality not in scan.images and there.exists():
            fault = f"is there, and {scan.images[scan.modality]} would write over the brain mask that fits it"
            return f"{there}: {fault}. Prepare a subject's modalities together, or into folders of their own"
    return ""


def _one_thread(jobs: int) -> None:
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    if jobs > 1:  # torch, which brain extraction imports later, reads this
        os.environ.setdefault("OMP_NUM_THREADS", "1")
