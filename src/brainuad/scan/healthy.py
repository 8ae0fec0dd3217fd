"""Compare one scan with the healthy scans of the model's calibration."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from brainuad.calibration import Calibration, Looks, Spread, look_at
from brainuad.detector import Detector
from brainuad.report.records import FIRST_COLOUR, FULL_COLOUR
from brainuad.scan.pipeline import ScanMaps


def against_healthy(
    detector: Detector, maps: ScanMaps, score: str, fpr: float, value: float
) -> tuple[dict[str, Any] | None, float | None, list[str]]:
    """Compare a scan with the healthy scans of the model's calibration.

    Args:
        detector: The model.
        maps: The scan and its maps.
        score: Entry of the score registry.
        fpr: Fraction of healthy brain voxels above the threshold.
        value: The scan's score.

    Returns:
        The entry "calibration" of the sidecar, or None for a model without calibration; the percentage of healthy scans
        with a lower score, or None; warnings.
    """
    calibration, placed = detector.calibration, maps.placed
    if calibration is None:
        warnings = Looks().doubts(look_at(placed.image, placed.mask, maps.brain.ml, placed.alignment))
        return None, None, [*warnings, "the model has no calibration: there is no threshold, so no findings"]
    warnings = calibration.warnings(placed.image, placed.mask, maps.brain.ml, placed.alignment)
    if score not in calibration.thresholds:
        return None, None, [*warnings, f"{score} was not calibrated: there is no threshold, so no findings"]
    known = {
        "scans": calibration.scans,
        "fraction": fpr,
        "threshold": calibration.threshold(score, fpr),
        "interval": calibration.interval(score, fpr),
        "first_colour": calibration.threshold(score, FIRST_COLOUR),
        "full_colour": calibration.threshold(score, FULL_COLOUR),
        "healthy_findings": _healthy_findings(calibration, score, fpr, placed.voxel_ml),
    }
    return known, calibration.percentile(score, value), warnings


def _healthy_findings(
    calibration: Calibration, score: str, fpr: float, voxel_ml: float
) -> dict[str, Any] | None:
    """Return the number of findings in healthy scans, and their volumes scaled to this head, as plain values."""
    known = calibration.healthy_findings(score, fpr)
    if known is None:
        return None
    fraction, healthy = known
    ml = [round(voxels * voxel_ml, 3) for voxels in healthy.voxels]
    return {"fraction": fraction, "count": asdict(Spread.of(healthy.counts)), "ml": asdict(Spread.of(ml))}
