"""What a folder of scored scans says about itself: sidecars, ``scores.csv`` and ``run.json``, checked and typed."""

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
        label: Its value in the volume of findings; 1 is the first of the list.
        ml: Volume in mL.
        peak: Highest map value in it.
        mean: Mean map value in it.
        centre_mm: Centre in scanner mm (RAS+).
        mni_mm: Centre in mm of MNI152, where it is known.
        side: "left", "right" or "midline".
        region: Name of the region of the atlas that holds most of it, or "".
        healthy_alike: How many healthy scans have the like, where it is known.
        rare: Whether that is rarer than 1 in 20; where it is not known, False.
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
    """What healthy scans have above the threshold, or above that for a larger fraction.

    Attributes:
        fraction: Fraction of healthy brain voxels that the threshold marks.
        count: Findings of a scan.
        ml: Their volume together, in mL of this head.
    """

    fraction: float
    count: Spread
    ml: Spread


@dataclass(frozen=True)
class Scale:
    """What healthy scans say about map values.

    Attributes:
        scans: Healthy scans it was measured on.
        fraction: Fraction of healthy brain voxels at or above ``threshold``.
        threshold: Map value from which on voxels belong to findings.
        interval: 95 % bootstrap interval of the threshold, where it is known.
        first_colour: Map value that 5 % of healthy brain voxels reach.
        full_colour: Map value that 0.1 % of healthy brain voxels reach.
        findings: What healthy scans have above the threshold, where it is known.
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
    """A scored scan: the sidecar's contents, with paths made absolute.

    Attributes:
        sidecar: The JSON file.
        kind: "nifti", "bids" or "dicom".
        source: The scan, or the folder of its DICOM series.
        sha256: Hash of the scan when it was scored, or "".
        model: Its name, fingerprint, contrast.
        settings: Score, false-positive fraction, seed, device.
        scale: None if the model has not been calibrated.
        findings: As they are listed: those that fewest healthy scans have the like of first, then the largest.
        outputs: Files by what they hold: "anomaly", "lesions", "reconstruction", "brain", "montage".
        lesion_mask: Ground truth, where there is one.
        raw: The sidecar as it is.
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
    """One scan in the table of all.

    Attributes:
        name: Unique within the run.
        status: "done", "failed" (when it was scored) or "damaged" (its files, since then).
        message: Why it failed, or what is damaged.
        score: Mean of the map over the brain.
        percentile: Percentage of healthy scans that score lower.
        findings: How many.
        rare: How many of them are rarer than in 1 of 20 healthy scans, where that is known.
        lesion_ml: Volume of all findings in mL.
        warnings: What a person should know before trusting the map.
        scored: Everything about it, if it was scored.
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
    """All that a folder of results holds.

    Attributes:
        folder: The folder.
        rows: Scans in the order of ``scores.csv``, others after them by name.
        run: ``run.json``, or an empty dict.
        healthy: Scan scores of the healthy scans of the calibration, sorted.
        notes: What could not be read.
    """

    folder: Path
    rows: list[Row]
    run: dict[str, Any]
    healthy: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_records(folder: str | Path) -> Records:
    """Read a folder that ``brainuad score`` wrote. What is damaged is listed as damaged; nothing is left out.

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
    """Return the JSON files of a folder of results that may be scans' sidecars, in order; not those of runs below."""
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
    """Whether a JSON file is that of a scan: a scan may have any name, that of a run's file too."""
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
            continue  # some other JSON, as BIDS has beside every image
        try:
            rows.append(_row(path, raw))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            fault = f"has no {error}" if isinstance(error, KeyError) else str(error)
            rows.append(Row(str(raw.get("name") or path.stem), "damaged", f"{path.name}: {fault}"))
    return rows


def _row(path: Path, raw: dict[str, Any]) -> Row:
    """Check a sidecar and return its scan.

    Raises:
        KeyError: A part is missing.
        TypeError, ValueError, AttributeError, OverflowError: A part is something else than it should be.
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
        # outputs lie beside their sidecar: a path that leads elsewhere is not followed
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
        rare=sum(finding.rare for finding in findings) if _tell_rarity(scored) else None,
        lesion_ml=sum(finding.ml for finding in findings),
        warnings=tuple(str(warning) for warning in raw["warnings"]),
        scored=scored,
    )


def _tell_rarity(scored: Scored) -> bool:
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
    """Return the rows of ``scores.csv`` by name; none if there is no such file."""
    if not path.exists():
        return {}
    try:
        return {entry["name"]: entry for entry in csv_reader(path)}
    except (OSError, ValueError, KeyError, csv.Error) as error:
        fault = "has no column 'name'" if isinstance(error, KeyError) else f"cannot be read ({error})"
        notes.append(f"{path.name} {fault}: scans that failed are not listed here")
        return {}


def _unscored(entry: dict[str, str]) -> Row:
    """Return the row of a scan that ``scores.csv`` has and no sidecar."""
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
