"""The tables of prepared scans: ``prepare.csv``, splits, manifests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from brainuad.data.cohort import HEALTHY_SET, MANIFEST_COLUMNS, SPLITS
from brainuad.data.tables import SPLIT_COLUMNS, read_table
from brainuad.errors import InputError
from brainuad.files import locked, write_text
from brainuad.prepare.raw import RawScan
from brainuad.prepare.raw.splits import FOLDS

Row = dict[str, Any]
PREPARE_COLUMNS = (
    "subject", "dataset", "split", "status", "seconds", "alignment", "brain_ml", "brain", "message"
)  # fmt: skip


MANIFESTS = {"t1": "manifest.csv", "t2": "manifest_t2.csv", "flair": "manifest_flair.csv"}
TABLES = {"prepare.csv": PREPARE_COLUMNS, **dict.fromkeys(MANIFESTS.values(), (*MANIFEST_COLUMNS, "dataset", "age"))}


def check_tables(data_dir: Path) -> None:
    """Refuse to overwrite tables that preparation did not write (by their columns): their contents would be lost."""
    for name, columns in TABLES.items():
        path = data_dir / name
        if not path.exists():
            continue
        row, _ = read_table(path, required=())[0]
        fault = ""
        if lost := [name for name in row if name not in columns]:
            fault = f"lose its columns {', '.join(lost)}"
        elif missing := [name for name in ("subject", "dataset") if name not in row]:
            fault = f"is not of preparation: it lacks the columns {', '.join(missing)}"
        if fault:
            raise InputError(path, f"would be written anew, and {fault}", "Choose another output folder, or move it")


def write_tables(data_dir: Path, scans: list[RawScan], rows: list[Row]) -> None:
    """Update ``prepare.csv``, the splits and the manifests from the ``rows`` of some of the ``scans``.

    Other processes that update them at the same time wait.
    """
    status = {(row["dataset"], row["subject"]): row["status"] for row in rows}
    left_out = {(row["dataset"], row["subject"]): row.get("left_out", ()) for row in rows}
    seen = [scan for scan in scans if (scan.dataset, scan.subject) in status]
    listed = [scan for scan in seen if scan.split and status[scan.dataset, scan.subject] != "failed"]

    with locked(data_dir / "prepare.csv"):
        table = _merge(data_dir / "prepare.csv", ("dataset", "subject"), rows, rows)
        _write_rows(
            data_dir / "prepare.csv", PREPARE_COLUMNS, sorted(table, key=lambda r: (r["dataset"], r["subject"]))
        )
        for dataset in sorted({scan.dataset for scan in seen}):
            # A subject whose split changed, or that failed this time, is removed from the files that listed it.
            old = [_split_row(scan) for scan in seen if scan.dataset == dataset]
            own = [scan for scan in listed if scan.dataset == dataset]
            for split in SPLITS:
                folded = dataset == "ixi" and split != "test"
                for fold in range(FOLDS if folded else 1):
                    name = f"{_listed_name(dataset)}_{split}{f'_fold{fold}' if folded else ''}.csv"
                    path = data_dir / "Data" / "splits" / name
                    new = [_split_row(scan) for scan in own if split in scan.splits[fold : fold + 1]]
                    _write_rows(path, SPLIT_COLUMNS, _merge(path, ("img_path",), old, new))
        for modality, name in MANIFESTS.items():
            # Rows of both modalities are removed: their common brain mask may have been overwritten.
            old = [_manifest_row(scan, modality) for scan in seen]
            new = [
                _manifest_row(scan, modality)
                for scan in listed
                if modality in scan.images and modality not in left_out[scan.dataset, scan.subject]
            ]
            _write_rows(data_dir / name, TABLES[name], _merge(data_dir / name, ("dataset", "subject"), old, new))


def _merge(path: Path, key: tuple[str, ...], old: list[Row], new: list[Row]) -> list[Row]:
    """Return a table's rows without those whose key is in ``old``, followed by ``new``."""
    gone = {tuple(row[column] for column in key) for row in old}
    before = [row for row, _ in read_table(path, required=key)] if path.exists() else []
    return [row for row in before if tuple(row[column] for column in key) not in gone] + new


def _write_rows(path: Path, columns: tuple[str, ...], rows: list[Row]) -> None:
    if rows:
        write_text(path, pd.DataFrame(rows, columns=list(columns)).to_csv(index=False, lineterminator="\n"))
    else:
        path.unlink(missing_ok=True)  # readers treat a table without rows as an error


def _listed_name(dataset: str) -> str:
    return HEALTHY_SET if dataset == "ixi" else dataset


def _split_row(scan: RawScan) -> Row:
    return {
        "img_name": f"{scan.subject}_t1.nii.gz",
        "age": scan.age if scan.age is not None else "",
        "label": scan.label,
        # The layout lists the T1 path even where there is none; readers derive the other paths from it.
        "img_path": "/" + scan.output_path("t1"),
        "mask_path": "/" + scan.output_path("mask"),
        "seg_path": "/" + scan.output_path("seg") if scan.lesion is not None else "",
    }


def _manifest_row(scan: RawScan, modality: str) -> Row:
    return {
        "subject": scan.subject,
        "image": "Data/" + scan.output_path(modality),
        "mask": "Data/" + scan.output_path("mask"),
        "seg": "Data/" + scan.output_path("seg") if scan.lesion is not None else "",
        "label": scan.label,
        "split": scan.split,
        "dataset": _listed_name(scan.dataset),
        "age": scan.age if scan.age is not None else "",
    }
