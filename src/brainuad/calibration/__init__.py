"""What a model does on healthy scans: thresholds, the range of scan scores, and what such scans look like."""

from brainuad.calibration.figures import FEW_SCANS, Calibration
from brainuad.calibration.healthy import HealthyScan, calibration_of
from brainuad.calibration.looks import Look, Looks, look_at
from brainuad.calibration.pooling import pooled_thresholds, tail_quantiles

__all__ = [
    "FEW_SCANS",
    "Calibration",
    "HealthyScan",
    "Look",
    "Looks",
    "calibration_of",
    "look_at",
    "pooled_thresholds",
    "tail_quantiles",
]
