"""Splits into training, validation and test, for data sets that have none."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from brainuad.data.cohort import check_split
from brainuad.data.tables import read_table
from brainuad.errors import InputError
from brainuad.prepare.raw.scan import RawScan

FOLDS = 5
_HELD_OUT = 0.25  # fraction of healthy subjects for test, and of patients for validation


def patient_split(dataset: str, subject: str) -> str:
    """Return a patient's split by a hash of the name: a quarter of a data set is "val", the rest "test"."""
    return "val" if _draw(dataset, subject) < _HELD_OUT else "test"


def healthy_folds(dataset: str, subject: str) -> tuple[str, ...]:
    """Return a healthy subject's split in five folds by a hash of the name.

    A quarter is "test" in all of them. Each of the others is "val" in one fold and "train" in four.
    """
    draw = _draw(dataset, subject)
    if draw < _HELD_OUT:
        return ("test",) * FOLDS
    own = int((draw - _HELD_OUT) / (1 - _HELD_OUT) * FOLDS)
    return tuple("val" if fold == own else "train" for fold in range(FOLDS))


def _draw(dataset: str, subject: str) -> float:
    """Return a number in [0, 1) that depends only on the name, so other subjects do not change it."""
    return int(sha256(f"{dataset}/{subject}".encode()).hexdigest()[:8], 16) / 2**32


def read_splits(path: Path) -> dict[str, tuple[str, ...]]:
    """Read a CSV of splits: ``subject`` and ``split``, or ``split_fold0``, ``split_fold1``, ... for several folds.

    Returns:
        Splits by `known_as` of the subject, one a fold.

    Raises:
        InputError: The file cannot be read, lacks a column, or names an unknown split.
    """
    rows = read_table(path, required=("subject",))
    columns = [name for name in rows[0][0] if re.fullmatch(r"split(_fold\d+)?", name)]
    folds = sorted((name for name in columns if name != "split"), key=lambda name: int(name[10:]))
    columns = folds or columns
    if not columns:
        raise InputError(path, "lacks a column split (or split_fold0, split_fold1, ...)", "Add it")
    found = {}
    for row, location in rows:
        for name in columns:
            check_split(row[name], location, optional=True)
        found[known_as(row["subject"])] = tuple(row[name] for name in columns)
    return found


def with_splits(scans: Sequence[RawScan], path: Path) -> list[RawScan]:
    """Return scans with the splits of a CSV, which lists one at least; subjects that it does not list get none."""
    table = read_splits(path)
    if not any(known_as(scan.subject) in table for scan in scans):
        raise InputError(path, "lists none of the subjects", f"They are called {scans[0].subject} and so on")
    return [replace(scan, splits=table.get(known_as(scan.subject), ("",))) for scan in scans]


def known_as(subject: str) -> str:
    """Return a subject's key: the number for IXI subjects, the whole name for others."""
    match = re.match(r"IXI\d{3}", subject)
    return match.group() if match else subject
