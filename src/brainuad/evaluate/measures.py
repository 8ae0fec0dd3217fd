"""What is measured of one case, and by which protocol."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from brainuad.data.loading import PreparedCase
from brainuad.evaluation import (
    FALSE_POSITIVE_FRACTIONS,
    confusion,
    hausdorff,
    reconstruction_errors,
    scan_score,
    slice_detection,
    slice_overlap,
    threshold_curve,
)
from brainuad.scoring import drop_small


@dataclass(frozen=True)
class Protocol:
    """The choices of an evaluation in which this package and the published release differ.

    Attributes:
        name: Written into every row.
        whole_grid: Count all voxels of the padded grid, most of them background, rather than the brain's.
        greedy_threshold: Search the validation threshold by the release's bisection, which may miss the best.
        shared_noise: Repeat one noise field over all slices of a scan.
        slice_axis: Array axis of the slice-wise figures: 2 axial, as the model sees slices; 0 sagittal.
        discovery_as_positive_rate: Report FP / (FP + TP) under the name of the false-positive rate.
    """

    name: str
    whole_grid: bool
    greedy_threshold: bool
    shared_noise: bool
    slice_axis: int
    discovery_as_positive_rate: bool


OURS = Protocol("brainuad", False, False, False, 2, False)
REFERENCE = Protocol("reference", True, True, True, 0, True)

OVER_ALL_THRESHOLDS = (
    "auroc",
    "average_precision",
    "chance",
    "best_dice",
    "best_threshold",
    "greedy_best_dice",
    "greedy_best_threshold",
    "slice_auroc",
    "slice_average_precision",
)
AT_THRESHOLD = (
    "threshold",
    "dice",
    "true_positives",
    "false_positives",
    "true_negatives",
    "false_negatives",
    "precision",
    "recall",
    "specificity",
    "accuracy",
    "false_positive_rate",
    "false_discovery_rate",
    "hausdorff_mm",
    "slice_dice",
    "slice_precision",
    "slice_recall",
)
RECONSTRUCTION = ("l1", "l1_lesion", "l1_healthy", "l2", "l2_lesion", "l2_healthy")
AT_HEALTHY_THRESHOLDS = tuple(
    f"{what}_fpr{fraction:g}" for fraction in FALSE_POSITIVE_FRACTIONS for what in ("above", "dice")
)
MEASURES = (*OVER_ALL_THRESHOLDS, *AT_THRESHOLD, *RECONSTRUCTION, "scan_score", *AT_HEALTHY_THRESHOLDS)


@dataclass(frozen=True)
class Thresholds:
    """Thresholds of one score, all found on validation scans.

    Attributes:
        lesion: Best pooled Dice on the set's validation scans with lesions; NaN without any.
        healthy: By fraction of healthy brain that is called anomalous; empty without healthy validation scans.
    """

    lesion: float = math.nan
    healthy: Mapping[float, float] = field(default_factory=dict)


def counted_voxels(prepared: PreparedCase, protocol: Protocol) -> np.ndarray:
    """Return the ``(X, Y, Z)`` bool voxels that figures count.

    Lesion outside the brain mask counts as brain: what the mask misses, the method has missed.
    """
    if protocol.whole_grid:
        return np.ones(prepared.mask.shape, dtype=bool)
    return prepared.mask if prepared.lesion is None else prepared.mask | prepared.lesion


def measure(
    prepared: PreparedCase,
    reconstruction: np.ndarray,
    anomaly: np.ndarray,
    protocol: Protocol,
    thresholds: Thresholds,
    *,
    min_voxels: int,
    spacing: float,
) -> dict[str, float]:
    """Return the measures of one case and score, by name; those that are undefined are left out or NaN.

    Args:
        prepared: The case.
        reconstruction: ``(X, Y, Z)``, mean of the draws.
        anomaly: ``(X, Y, Z)`` map, as it is thresholded.
        protocol: See :class:`Protocol`.
        thresholds: Found on validation scans.
        min_voxels: Components smaller than this are dropped from predictions.
        spacing: Voxel size in mm.
    """
    voxels = counted_voxels(prepared, protocol)
    lesion = np.zeros_like(voxels) if prepared.lesion is None else prepared.lesion
    measures = reconstruction_errors(prepared.image[voxels], reconstruction[voxels], lesion[voxels])
    measures["scan_score"] = scan_score(anomaly, prepared.mask)

    def predict(threshold: float) -> np.ndarray:
        return np.asarray(drop_small(anomaly > threshold, min_voxels).numpy())

    for fraction, threshold in thresholds.healthy.items():
        measures[f"above_fpr{fraction:g}"] = float(np.mean(anomaly[prepared.mask] > threshold))
        if prepared.lesion is not None:
            counts = confusion(predict(threshold)[voxels], lesion[voxels])
            measures[f"dice_fpr{fraction:g}"] = counts.dice
    if prepared.lesion is None:
        return measures
    measures |= _over_all_thresholds(anomaly, prepared.mask, lesion, voxels, protocol)
    if not math.isnan(thresholds.lesion):
        predicted = predict(thresholds.lesion)
        measures["threshold"] = thresholds.lesion
        measures |= _at_threshold(predicted, lesion, voxels, protocol, spacing)
    return measures


def _over_all_thresholds(
    anomaly: np.ndarray, mask: np.ndarray, lesion: np.ndarray, voxels: np.ndarray, protocol: Protocol
) -> dict[str, float]:
    curve = threshold_curve(anomaly[voxels], lesion[voxels])
    best, greedy = curve.best_dice(), curve.greedy_best_dice()
    slices = slice_detection(anomaly, lesion, mask, protocol.slice_axis)
    return {
        "auroc": curve.auroc(),
        "average_precision": curve.average_precision(),
        "chance": float(lesion[voxels].mean()),
        "best_dice": best[0],
        "best_threshold": best[1],
        "greedy_best_dice": greedy[0],
        "greedy_best_threshold": greedy[1],
        **{f"slice_{name}": value for name, value in slices.items()},
    }


def _at_threshold(
    predicted: np.ndarray, lesion: np.ndarray, voxels: np.ndarray, protocol: Protocol, spacing: float
) -> dict[str, float]:
    counts: Any = confusion(predicted[voxels], lesion[voxels])
    measures = {name: float(getattr(counts, name)) for name in AT_THRESHOLD if hasattr(counts, name)}
    if protocol.discovery_as_positive_rate:
        measures["false_positive_rate"] = measures["false_discovery_rate"]
    measures["hausdorff_mm"] = hausdorff(predicted & voxels, lesion) * spacing
    slices = slice_overlap(predicted & voxels, lesion, protocol.slice_axis)
    return measures | {f"slice_{name}": value for name, value in slices.items()}
