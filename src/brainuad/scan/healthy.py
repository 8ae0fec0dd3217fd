"""What a model's calibration, made on healthy scans, says about one scan."""

from __future__ import annotations

from typing import Any

from brainuad.detector import Detector
from brainuad.scan.pipeline import ScanMaps

FIRST_COLOUR, FULL_COLOUR = 0.05, 0.001  # fractions of healthy brain voxels above the colours of pictures


def against_healthy(
    detector: Detector, maps: ScanMaps, score: str, fpr: float, value: float
) -> tuple[dict[str, Any] | None, float | None, list[str]]:
    """Compare a scan with the healthy scans of the model's calibration.

    Args:
        detector: The model.
        maps: The scan.
        score: Entry of the score registry.
        fpr: Fraction of healthy brain voxels above the threshold.
        value: The scan's score.

    Returns:
        The part of the sidecar named "calibration", or None for a model without; the percentage of healthy scans with
        a lower score, or None; warnings.
    """
    calibration: dict[str, Any] = detector.calibration or {}
    thresholds = calibration.get("thresholds", {}).get(score)
    if not thresholds:
        return (
            None,
            None,
            [f"the model has no calibration for {score}: there is no threshold, so no findings"],
        )
    known = {
        "scans": calibration["scans"],
        "fraction": fpr,
        "threshold": _threshold(thresholds, fpr),
        "interval": None,
        "first_colour": _threshold(thresholds, FIRST_COLOUR),
        "full_colour": _threshold(thresholds, FULL_COLOUR),
    }
    return known, None, []
