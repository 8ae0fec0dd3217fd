"""What the page says in words of a record: its scale, its healthy scans, and its facts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from brainuad.record import FIRST_COLOUR, FULL_COLOUR, Record, Scale
from brainuad.report.records import Records

UNCALIBRATED = (0.2, 1.0)  # colour scale of a map that nobody has calibrated


def about(records: Records) -> list[str]:
    """Return score, model, date and version of what was scored; where scans differ, each of theirs."""
    scored = [row.record for row in records.rows if row.record]
    parts: dict[str, list[Any]] = {
        "score": [one.settings.score for one in scored],
        "model": [one.model.name for one in scored],
        "scored": [str(records.run.get("started") or "")[:10]],
        "brainuad": [one.brainuad for one in scored],
    }
    known = {name: dict.fromkeys(str(value) for value in values if value) for name, values in parts.items()}
    return [f"{name} {', '.join(values)}" for name, values in known.items() if values]


def scale_words(scale: Scale | None) -> str:
    """Say what the colours mean."""
    if scale is None:
        first, full = UNCALIBRATED
        return (
            f"The model has not been calibrated: colours run from {first:g} (red) to {full:g} (yellow) of the "
            "map, and nothing is known about how common a value is in healthy brains."
        )
    interval = f", 95 % interval {scale.interval[0]:.3f} to {scale.interval[1]:.3f}" if scale.interval else ""
    return (
        f"{_percent(scale.fraction)} of a healthy brain's voxels are at or above {scale.threshold:.3f} "
        f"(findings{interval}); {_percent(FIRST_COLOUR)} at or above {scale.first_colour:.3f} (red begins); "
        f"{_percent(FULL_COLOUR)} at or above {scale.full_colour:.3f} (brightest yellow, or the "
        f"scan's highest value where that is higher). "
        f"Measured on {scale.scans} healthy scans."
    )


def healthy_words(scale: Scale | None) -> str:
    """Say what healthy scans have where findings are looked for, "" where that is unknown."""
    if scale is None or scale.healthy_findings is None:
        return ""
    count, ml = scale.healthy_findings.count, scale.healthy_findings.ml
    words = (
        f"Of {scale.scans} healthy scans, half have {count.median:g} findings or more "
        f"({count.lowest:g} to {count.highest:g}), "
        f"{ml.median:.1f} mL in all or more ({ml.lowest:.1f} to {ml.highest:.1f})"
    )
    if scale.healthy_findings.fraction > scale.fraction:
        words += f", at the threshold for {_percent(scale.healthy_findings.fraction)}"
    return words + "."


def _percent(fraction: float) -> str:
    return f"{fraction * 100:g} %"


def colours_of(record: Record) -> dict[str, float | None]:
    """Return where colours begin and end, which is at the highest finding where that is beyond the scale."""
    scale = record.calibration
    if scale is None:
        return {"first": UNCALIBRATED[0], "full": UNCALIBRATED[1], "threshold": None}
    full = max([scale.full_colour, *(finding.peak for finding in record.findings)])
    return {"first": scale.first_colour, "full": full, "threshold": scale.threshold}


def steps(scale: Scale | None) -> list[tuple[float, str]]:
    """Return map values, descending, and what it means to reach them, for the voxel under the crosshair."""
    if scale is None:
        return [(0.0, "not calibrated")]
    known = {FIRST_COLOUR: scale.first_colour, FULL_COLOUR: scale.full_colour, scale.fraction: scale.threshold}
    voxels = "of a healthy brain's voxels are this high"
    steps = [(value, f"at most {_percent(fraction)} {voxels}") for fraction, value in sorted(known.items())]
    return [*steps, (0.0, f"common: more than {_percent(max(known))} {voxels}")]


def facts_of(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield the leaves of nested JSON as text."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from facts_of(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        yield name, ", ".join(str(entry) for entry in value)
    else:
        yield name, "none" if value is None else str(value)
