"""``scores.csv`` and ``findings.csv``: tables of scored scans, made from the scans' sidecars."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from brainuad.errors import InputError
from brainuad.files import csv_reader, locked, read_json, write_json, write_text
from brainuad.inputs.scans import Scan, output_paths
from brainuad.record import Failure, Record, ScanSource, from_json, to_json
from brainuad.report.records import sidecar_paths
from brainuad.scan.identity import may_replace, series_hash

Row = dict[str, Any]
SCORES_CSV, FINDINGS_CSV = "scores.csv", "findings.csv"
COLUMNS = (
    "name", "status", "score", "percentile", "findings", "rare", "lesion_ml", "brain_ml", "alignment", "seconds",
    "warnings", "message",
)  # fmt: skip
FINDING_COLUMNS = (
    "name", "label", "region", "side", "mni_x", "mni_y", "mni_z", "healthy_alike", "healthy_scans", "rare", "ml",
    "peak", "mean", "scanner_x", "scanner_y", "scanner_z",
)  # fmt: skip
_FAILED = "failed"  # folder of the sidecars of failed scans; elsewhere BIDS requires an image beside each


def row_of(record: Record | Failure) -> Row:
    """Return a scan's row of ``scores.csv``."""
    row: Row = dict.fromkeys(COLUMNS, "") | {"name": record.name, "status": record.status}
    if isinstance(record, Failure):
        return row | {"seconds": record.seconds, "message": record.message}
    percentile = record.score.percentile
    return row | {
        "score": round(record.score.value, 5),
        "percentile": "" if percentile is None else round(percentile, 1),
        "findings": len(record.findings),
        "rare": "" if record.rare is None else record.rare,
        "lesion_ml": round(record.lesion_ml, 3),
        "brain_ml": round(record.brain.ml, 1),
        "alignment": record.alignment,
        "seconds": round(sum(record.seconds.values()), 1),
        "warnings": "; ".join(record.warnings),
    }


def finding_rows_of(record: Record | Failure) -> list[Row]:
    """Return a row of ``findings.csv`` for each finding of a scan; what is not known is empty."""
    if isinstance(record, Failure):
        return []
    rows = []
    for finding in record.findings:
        row: Row = asdict(finding) | {"name": record.name}
        if finding.healthy_alike is not None and record.calibration is not None:
            row["healthy_scans"] = record.calibration.scans
        for place, point in (("mni", finding.mni_mm), ("scanner", finding.centre_mm)):
            row |= {f"{place}_{axis}": round(value, 1) for axis, value in zip("xyz", point, strict=True)}
        rows.append(row)
    return rows


def record_failure(scan: Scan, output: Path, message: str, seconds: float) -> Row:
    """Record that a scan failed, remove its earlier results, and return its row.

    Results of another scan under the same name stay. The row is returned even if the folder cannot be written to.
    """
    sidecar = output / output_paths(scan)["sidecar"]
    about = ScanSource(str(scan.source), scan.kind, series_hash(scan))
    record = Failure(name=scan.name, message=message, seconds=seconds, scan=about)
    with suppress(InputError, OSError):
        if may_replace(scan, sidecar):  # an earlier result must not pass for this run's
            sidecar.unlink(missing_ok=True)
        write_json(_failure(scan, output), to_json(record))
    return row_of(record)


def forget_failure(scan: Scan, output: Path) -> None:
    """Remove the failure that an earlier run recorded for a scan that is now scored."""
    path = _failure(scan, output)
    path.unlink(missing_ok=True)
    with suppress(OSError):  # other failures are left in it
        path.parent.rmdir()


def write_table(output: Path, rows: Iterable[Row]) -> None:
    """Update ``scores.csv`` from the sidecars and a run's rows, and ``findings.csv`` from the sidecars.

    Existing rows keep their order. New rows follow by name, then the run's. A row without a sidecar stays. Findings
    come in the order of their scans. Other processes that update the tables at the same time wait.

    Raises:
        InputError: The folder cannot be written to.
    """
    rows = list(rows)
    path = output / SCORES_CSV
    with locked(path):
        known = _known(output)
        before = _before(path) | {name: known[name][0] for name in sorted(known)}
        for row in rows:
            before.pop(row["name"], None)
        listed = [*before.values(), *rows]
        findings = [finding for row in listed if row["name"] in known for finding in known[row["name"]][1]]
        write_text(path, _as_csv(COLUMNS, listed))
        write_text(output / FINDINGS_CSV, _as_csv(FINDING_COLUMNS, findings))


def _as_csv(columns: Sequence[str], rows: Iterable[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _failure(scan: Scan, output: Path) -> Path:
    return output / _FAILED / f"{scan.name}.json"


def _known(output: Path) -> dict[str, tuple[Row, list[Row]]]:
    """Return the row of each sidecar and the rows of its findings, by name. A failure replaces an earlier result."""
    records: list[tuple[bool, Row, list[Row]]] = []
    for path in sidecar_paths(output):
        try:
            record = from_json(read_json(path))
        except (OSError, ValueError):
            continue  # damaged: the row of before stays
        if record is not None:
            failed = path.parent == output / _FAILED
            records.append((failed, row_of(record), finding_rows_of(record)))
    return {row["name"]: (row, rows) for _, row, rows in sorted(records, key=lambda record: record[0])}


def _before(path: Path) -> dict[str, Row]:
    """Return a table's rows by name, even if a spreadsheet program has saved it again."""
    try:
        return {row["name"]: row for row in csv_reader(path) if row.get("name")}
    except (OSError, ValueError, csv.Error):  # absent or damaged: the sidecars hold all rows
        return {}
