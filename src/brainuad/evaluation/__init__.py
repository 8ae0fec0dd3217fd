"""How good is a map? Measures against drawn lesions, thresholds from validation, figures over subjects."""

from brainuad.evaluation.curve import (
    ThresholdCurve,
    auroc,
    average_precision,
    best_dice,
    greedy_best_dice,
    threshold_curve,
)
from brainuad.evaluation.metrics import (
    Confusion,
    confusion,
    dice,
    hausdorff,
    reconstruction_errors,
    scan_score,
    slice_detection,
    slice_overlap,
)
from brainuad.evaluation.statistics import Summary, summarise
from brainuad.evaluation.thresholds import (
    FALSE_POSITIVE_FRACTIONS,
    false_positive_thresholds,
    pooled_best_threshold,
    pooled_greedy_threshold,
)

__all__ = [
    "FALSE_POSITIVE_FRACTIONS",
    "Confusion",
    "Summary",
    "ThresholdCurve",
    "auroc",
    "average_precision",
    "best_dice",
    "confusion",
    "dice",
    "false_positive_thresholds",
    "greedy_best_dice",
    "hausdorff",
    "pooled_best_threshold",
    "pooled_greedy_threshold",
    "reconstruction_errors",
    "scan_score",
    "slice_detection",
    "slice_overlap",
    "summarise",
    "threshold_curve",
]
