"""Calibration on healthy scans: thresholds, the range of scan scores, and the appearance of such scans."""

from brainuad.calibration.appearance import Appearance, HealthyAppearance, appearance_of
from brainuad.calibration.figures import FEW_SCANS, Calibration
from brainuad.calibration.findings import SMALLEST_FINDING, HealthyFindings
from brainuad.calibration.healthy import BrainMaps, HealthyScan, calibration_of, set_against_health
from brainuad.calibration.pooling import pooled_thresholds
from brainuad.scoring.rarity import tail_quantiles

__all__ = [
    "FEW_SCANS",
    "SMALLEST_FINDING",
    "Appearance",
    "BrainMaps",
    "Calibration",
    "HealthyAppearance",
    "HealthyFindings",
    "HealthyScan",
    "appearance_of",
    "calibration_of",
    "pooled_thresholds",
    "set_against_health",
    "tail_quantiles",
]
