"""Read and check the records of a folder of scored scans: sidecars, ``scores.csv`` and ``run.json``."""

from __future__ import annotations

import csv
import json
import math
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brainuad.errors import InputError
from brainuad.files import csv_reader

Point = tuple[float, float, float]
_OF_THE_RUN = ("run.json", "dataset_description.json")

# fractions of healthy brain voxels above the first and the brightest colour
FIRST_COLOUR, FULL_COLOUR = 0.05, 0.001
SCALE_MEANING = (
    f"red: {FIRST_COLOUR:.0%} of healthy brain is higher · yellow: {FULL_COLOUR:.1%}, or the highest"
)


@dataclass(frozen=True)
class Finding:
    """A connected region above the threshold, as measured on the scan's own grid.

    Attributes:
        label: Its value in the label volume; 1 is the first of the list.
        ml: Volume in mL.
        peak: Highest map value in it.
        mean: Mean map value in it.
        centre_mm: Centre in scanner mm (RAS+).
        mni_mm: Centre in mm of MNI152, or None.
        side: "left", "right" or "midline".
        region: Name of the atlas region that holds most of its voxels, or "".
        healthy_alike: Number of healthy scans with a finding at least as high and as large, or None if unknown.
        rare: Whether fewer than 1 in 20 healthy scans have one; False if unknown.
    """

    label: int
    ml: float
    peak: float
    mean: float
    centre_mm: Point
    mni_mm: Point | None
    side: str
    region: str
    healthy_alike: int | None
    rare: bool


@dataclass(frozen=True)
class Spread:
    """Median, lowest and highest of one number over healthy scans."""

    median: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class HealthyFindings:
    """The findings of healthy scans at the threshold, or at that for a larger fraction.

    Attributes:
        fraction: Fraction of healthy brain voxels above the threshold.
        count: Number of findings of a scan.
        ml: Their total volume, in mL of this head.
    """

    fraction: float
    count: Spread
    ml: Spread


@dataclass(frozen=True)
class Scale:
    """The calibration of map values on healthy scans.

    Attributes:
        scans: Healthy scans it was measured on.
        fraction: Fraction of healthy brain voxels at or above ``threshold``.
        threshold: Map value from which on voxels belong to findings.
        interval: 95 % bootstrap interval of the threshold, or None.
        first_colour: Map value that 5 % of healthy brain voxels reach.
        full_colour: Map value that 0.1 % of healthy brain voxels reach.
        findings: The findings of healthy scans, or None.
    """

    scans: int
    fraction: float
    threshold: float
    interval: tuple[float, float] | None
    first_colour: float
    full_colour: float
    findings: HealthyFindings | None = None


@dataclass(frozen=True)
class Scored:
    """A scored scan: the sidecar's contents, with absolute paths.

    Attributes:
        sidecar: The JSON file.
        kind: "nifti", "bids" or "dicom".
        source: The scan, or the folder of its DICOM series.
        sha256: Hash of the scan when it was scored, or "".
        model: Its name, fingerprint, contrast.
        settings: Score, false-positive fraction, seed, device.
        scale: None if the model has not been calibrated.
        findings: In the order of the list: rarest first, equally rare ones by volume.
        outputs: Files by content: "anomaly", "lesions", "reconstruction", "brain", "montage".
        lesion_mask: Ground truth, where there is one.
        raw: The sidecar's plain contents.
    """

    sidecar: Path
    kind: str
    source: Path
    sha256: str
    model: dict[str, Any]
    settings: dict[str, Any]
    scale: Scale | None
    findings: list[Finding]
    outputs: dict[str, Path]
    lesion_mask: Path | None
    raw: dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One scan in the table of all scans.

    Attributes:
        name: Unique within the run.
        status: "done", "failed" (when it was scored) or "damaged" (its files, since then).
        message: Why it failed, or what is damaged.
        score: Mean of the map over the brain.
        percentile: Percentage of healthy scans that score lower.
        findings: Number of findings.
        rare: Number of rare ones among them, or None if unknown.
        lesion_ml: Volume of all findings in mL.
        warnings: What to know before trusting the map.
        scored: All its data, if it was scored.
    """

    name: str
    status: str
    message: str = ""
    score: float | None = None
    percentile: float | None = None
    findings: int | None = None
    rare: int | None = None
    lesion_ml: float | None = None
    warnings: tuple[str, ...] = ()
    scored: Scored | None = None


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
        healthy = sorted(_number(value) for value in run.get("healthy_scores") or [])
    except (TypeError, ValueError):
        notes.append("run.json: healthy_scores are not numbers")
        healthy = []
    return Records(folder, rows, run, healthy, notes)


def sidecar_paths(folder: Path) -> list[Path]:
    """Return the possible sidecars of a folder of results, in order, without those of runs in subfolders."""
    runs = [
        path.parent
        for path in folder.rglob(_OF_THE_RUN[0])
        if path.parent != folder and not _is_sidecar(path)
    ]
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
    with suppress(OSError, ValueError, RecursionError):
        return "scan" in json.loads(path.read_text(encoding="utf-8"))
    return False


def _sidecar_rows(folder: Path) -> list[Row]:
    rows: list[Row] = []
    for path in sidecar_paths(folder):
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            rows.append(Row(path.stem, "damaged", f"{path.name} cannot be read ({error})"))
            continue
        if not isinstance(raw, dict) or "brainuad" not in raw or "scan" not in raw:
            continue  # other JSON, for instance a BIDS file beside an image
        try:
            rows.append(_row(path, raw))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            fault = f"has no {error}" if isinstance(error, KeyError) else str(error)
            rows.append(Row(str(raw.get("name") or path.stem), "damaged", f"{path.name}: {fault}"))
    return rows


def _row(path: Path, raw: dict[str, Any]) -> Row:
    """Check a sidecar and return its scan.

    Raises:
        KeyError: An entry is missing.
        TypeError, ValueError, AttributeError, OverflowError: An entry has the wrong type or value.
    """
    name = str(raw["name"])
    if raw["status"] != "done":
        return Row(name, "failed", str(raw.get("message", raw["status"])))
    findings = [_finding(entry) for entry in raw["findings"]]
    truth = raw.get("lesion_mask")
    scored = Scored(
        sidecar=path,
        kind=str(raw["scan"]["kind"]),
        source=Path(str(raw["scan"]["source"])),
        sha256=str(raw["scan"].get("sha256") or ""),
        model=dict(raw["model"]),
        settings=dict(raw["settings"]),
        scale=_scale(raw["calibration"]),
        findings=findings,
        # outputs lie beside their sidecar: a path to another folder is not followed
        outputs={str(key): path.parent / Path(str(value)).name for key, value in raw["outputs"].items()},
        lesion_mask=Path(str(truth)) if truth else None,
        raw=raw,
    )
    percentile = raw["score"].get("percentile")
    return Row(
        name=name,
        status="done",
        score=_number(raw["score"]["value"]),
        percentile=None if percentile is None else _number(percentile),
        findings=len(findings),
        rare=sum(finding.rare for finding in findings) if _has_rarity(scored) else None,
        lesion_ml=sum(finding.ml for finding in findings),
        warnings=tuple(str(warning) for warning in raw["warnings"]),
        scored=scored,
    )


def _has_rarity(scored: Scored) -> bool:
    return scored.scale is not None and scored.scale.findings is not None


def _finding(entry: dict[str, Any]) -> Finding:
    mni, alike = entry.get("mni_mm"), entry.get("healthy_alike")
    return Finding(
        label=int(entry["label"]),
        ml=_number(entry["ml"]),
        peak=_number(entry["peak"]),
        mean=_number(entry["mean"]),
        centre_mm=_point(entry["centre_mm"]),
        mni_mm=_point(mni) if mni else None,
        side=str(entry["side"]),
        region=str(entry.get("region") or ""),
        healthy_alike=None if alike is None else int(alike),
        rare=entry.get("rare") is True,
    )


def _scale(entry: dict[str, Any] | None) -> Scale | None:
    if entry is None:
        return None
    interval, healthy = entry.get("interval"), entry.get("healthy_findings")
    scale = Scale(
        scans=int(entry["scans"]),
        fraction=_number(entry["fraction"]),
        threshold=_number(entry["threshold"]),
        interval=(_number(interval[0]), _number(interval[1])) if interval else None,
        first_colour=_number(entry["first_colour"]),
        full_colour=_number(entry["full_colour"]),
        findings=_healthy_findings(healthy) if healthy else None,
    )
    if not scale.full_colour > scale.first_colour:
        raise ValueError(f"the colour scale ends at {scale.full_colour:g}, before it begins")
    return scale


def _healthy_findings(entry: dict[str, Any]) -> HealthyFindings:
    count, ml = (
        Spread(*(_number(entry[name][key]) for key in ("median", "lowest", "highest")))
        for name in ("count", "ml")
    )
    return HealthyFindings(_number(entry["fraction"]), count, ml)


def _number(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not a finite number")
    return number


def _point(values: Any) -> Point:
    x, y, z = (_number(value) for value in values)
    return x, y, z


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
        run = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        notes.append(f"{path.name} cannot be read ({error})")
        return {}
    if not isinstance(run, dict):
        notes.append(f"{path.name} is not what `brainuad score` writes")
        return {}
    return run
