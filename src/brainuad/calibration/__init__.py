"""What a model does on healthy scans: thresholds, the range of scan scores, and what such scans look like."""

from brainuad.calibration.figures import Calibration
from brainuad.calibration.looks import Look, Looks, look_at
from brainuad.calibration.pooling import TAIL, pooled_thresholds, tail_quantiles

__all__ = ["TAIL", "Calibration", "Look", "Looks", "look_at", "pooled_thresholds", "tail_quantiles"]
