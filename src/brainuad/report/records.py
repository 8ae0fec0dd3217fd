"""Read and check the records of a folder of scored scans: sidecars, ``scores.csv`` and ``run.json``."""

from __future__ import annotations

import csv
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brainuad.errors import InputError
from brainuad.files import csv_reader, read_json
from brainuad.record import Failure, Record, from_json

_OF_THE_RUN = ("run.json", "dataset_description.json")


@dataclass(frozen=True)
class Scored:
    """A scored scan, with paths made absolute.

    Attributes:
        sidecar: The JSON file.
        record: What it holds.
        outputs: Files by what they hold: "anomaly", "lesions", "reconstruction", "brain", "montage".
    """

    sidecar: Path
    record: Record
    outputs: dict[str, Path]

    @property
    def source(self) -> Path:
        """The scan, or the folder of its DICOM series."""
        return Path(self.record.scan.source)

    @property
    def lesion_mask(self) -> Path | None:
        """Ground truth, where there is one."""
        return Path(self.record.lesion_mask) if self.record.lesion_mask else None


@dataclass(frozen=True)
class Row:
    """One scan in the table of all scans.

    Attributes:
        name: Unique within the run.
        status: "done", "failed" (when it was scored) or "damaged" (its files, since then).
        message: Why it failed, or what is damaged.
        scored: Everything about it, if it was scored.
    """

    name: str
    status: str
    message: str = ""
    scored: Scored | None = None

    @property
    def record(self) -> Record | None:
        """What the sidecar holds, if it was scored."""
        return self.scored.record if self.scored else None


@dataclass(frozen=True)
class Records:
    """The contents of a folder of results.

    Attributes:
        folder: The folder.
        rows: Scans in the order of ``scores.csv``, others after them by name.
        run: ``run.json``, or an empty dict.
        healthy: Scan scores of the healthy scans of the calibration, sorted.
        notes: Messages about files that could not be read.
    """

    folder: Path
    rows: list[Row]
    run: dict[str, Any]
    healthy: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_records(folder: str | Path) -> Records:
    """Read a folder that ``brainuad score`` wrote. Damaged results are listed as damaged; nothing is left out.

    Raises:
        InputError: There is no such folder, or no scored or failed scan in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(folder, "is not a folder", "Give the output folder of `brainuad score`")
    notes: list[str] = []
    listed = _read_table(folder / "scores.csv", notes)
    found = _sidecar_rows(folder)
    named = {row.name: row for row in found}
    rows = [named[name] if name in named else _unscored(entry) for name, entry in listed.items()]
    rows += sorted((row for row in found if row not in rows), key=lambda row: row.name)
    if not rows:
        raise InputError(folder, "holds no scored scan", "Give the output folder of `brainuad score`")
    run = _read_run(folder / "run.json", notes)
    try:
        healthy = sorted(map(float, run.get("healthy_scores") or []))
    except (TypeError, ValueError):
        notes.append("run.json: healthy_scores are not numbers")
        healthy = []
    return Records(folder, rows, run, healthy, notes)


def sidecar_paths(folder: Path) -> list[Path]:
    """Return the possible sidecars of a folder of results, in order, without those of runs in subfolders."""
    runs = [path.parent for path in folder.rglob(_OF_THE_RUN[0]) if path.parent != folder and not _is_sidecar(path)]
    return [
        path
        for path in sorted(folder.rglob("*.json"))
        if not (path.parent == folder and path.name in _OF_THE_RUN)
        and not path.name.startswith(".")
        and path.is_file()
        and not any(run in path.parents for run in runs)
    ]


def _is_sidecar(path: Path) -> bool:
    """Return whether a JSON file is a scan's sidecar. A scan may even have the name of a run's file."""
    with suppress(OSError, ValueError):
        value = read_json(path)
        return isinstance(value, dict) and "scan" in value
    return False


def _sidecar_rows(folder: Path) -> list[Row]:
    rows: list[Row] = []
    for path in sidecar_paths(folder):
        try:
            raw = read_json(path)
        except (OSError, ValueError) as error:
            rows.append(Row(path.stem, "damaged", f"{path.name} cannot be read ({error})"))
            continue
        try:
            record = from_json(raw)
        except ValueError as error:
            rows.append(Row(str(raw.get("name") or path.stem), "damaged", f"{path.name}: {error}"))
            continue
        if isinstance(record, Failure):
            rows.append(Row(record.name, "failed", record.message))
        elif record is not None:  # not some other JSON, as BIDS has beside every image
            # outputs lie beside their sidecar: a path that leads elsewhere is not followed
            outputs = {kind: path.parent / Path(name).name for kind, name in record.outputs.items()}
            rows.append(Row(record.name, "done", scored=Scored(path, record, outputs)))
    return rows


def _read_table(path: Path, notes: list[str]) -> dict[str, dict[str, str]]:
    """Return the rows of ``scores.csv`` by name; {} if there is no such file."""
    if not path.exists():
        return {}
    try:
        return {entry["name"]: entry for entry in csv_reader(path)}
    except (OSError, ValueError, KeyError, csv.Error) as error:
        fault = "has no column 'name'" if isinstance(error, KeyError) else f"cannot be read ({error})"
        notes.append(f"{path.name} {fault}: scans that failed are not listed here")
        return {}


def _unscored(entry: dict[str, str]) -> Row:
    """Return the row of a scan that is in ``scores.csv`` but has no sidecar."""
    if entry.get("status") == "done":
        return Row(entry["name"], "damaged", "its JSON file is gone: score it again")
    return Row(entry["name"], "failed", entry.get("message") or "no message was kept")


def _read_run(path: Path, notes: list[str]) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        run = read_json(path)
    except (OSError, ValueError) as error:
        notes.append(f"{path.name} cannot be read ({error})")
        return {}
    if not isinstance(run, dict):
        notes.append(f"{path.name} is not what `brainuad score` writes")
        return {}
    return run
