"""Preparing many scans, several at a time."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import as_completed
from pathlib import Path

import pandas as pd
import SimpleITK as sitk

from brainuad.errors import InputError
from brainuad.files import check_writable
from brainuad.prepare.layout import place
from brainuad.prepare.raw import RawScan
from brainuad.prepare.scan import Preparation, Row, failed_row, prepare_scan
from brainuad.prepare.tables import MANIFESTS, check_tables, write_tables
from brainuad.processes import process_pool


def prepare_cohort(
    scans: list[RawScan],
    data_dir: str | Path,
    settings: Preparation,
    *,
    jobs: int = 1,
    report: Callable[[Row], None] = lambda row: None,
) -> pd.DataFrame:
    """Prepare scans into the paper's layout; finished ones are skipped, failed ones recorded.

    Writes ``Data/Train/ixi`` or ``Data/Test/<dataset>`` with ``t1``, ``t2``, ``mask`` and ``seg``, ``labels`` where the
    given mask is a parcellation, and one JSON sidecar a subject in ``Data/prepared/<dataset>``. At the end, or when
    interrupted, it brings these tables up to date; rows of subjects that are not in this run stay:

    - ``prepare.csv``: every subject's row;
    - ``Data/splits``: the split CSVs of the paper's layout;
    - ``manifest.csv`` for T1 and ``manifest_t2.csv`` for T2: whatever was prepared and has a split, of any data set.

    Args:
        scans: What to prepare.
        data_dir: Folder of the layout; created where missing.
        settings: See :class:`Preparation`.
        jobs: Processes.
        report: Called with each subject's row as it is done.

    Returns:
        One row a subject: subject, dataset, split, status ("prepared", "skipped" or "failed"), seconds, alignment
        (correlation with the atlas), brain_ml, brain (how it was found), left_out (images that were not asked for and
        could not be prepared, and why), message.

    Raises:
        InputError: A table in ``data_dir`` is somebody else's, it cannot be written to, or a scan lies where its own
            results would go.
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
    with process_pool(jobs, _one_thread, jobs) as pool:
        futures = {pool.submit(prepare_scan, scan, root, settings): scan for scan in scans}
        try:
            for future in as_completed(futures):
                rows.append(future.result())
                report(rows[-1])
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        finally:  # an interrupted run leaves its tables too
            write_tables(Path(data_dir), scans, rows)
    return pd.DataFrame(refused + rows).sort_values(["dataset", "subject"], ignore_index=True)


def _check_apart(scans: list[RawScan], root: Path) -> None:
    for scan in scans:
        results = {(root / place(scan, kind)).resolve() for kind in ("t1", "t2", "mask", "labels", "seg")}
        for path in (*scan.images.values(), scan.mask, scan.lesion):
            if path is not None and path.resolve() in results:
                raise InputError(path, "would be written over", "Choose another output folder")


def _clash(scan: RawScan, root: Path) -> str:
    """Return why a scan cannot be prepared beside what is there; its results there stay, and stay listed.

    The brain mask fits the T1 where there is one. It may be made again, but not from an image that has none there yet.
    """
    leading = "t1" if "t1" in scan.images else scan.modality
    if (root / place(scan, leading)).exists():
        return ""
    for modality in MANIFESTS:
        there = root / place(scan, modality)
        if modality not in scan.images and there.exists():
            fault = f"is there, and {scan.images[scan.modality]} would write over the brain mask that fits it"
            return f"{there}: {fault}. Prepare a subject's modalities together, or into folders of their own"
    return ""


def _one_thread(jobs: int) -> None:
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    if jobs > 1:  # torch, which brain extraction loads later, looks here
        os.environ.setdefault("OMP_NUM_THREADS", "1")
