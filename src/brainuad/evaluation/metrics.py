"""Measures of one case: a prediction, a map or a reconstruction against the lesion drawn by an expert.

All are pure functions on tensors or arrays. Voxels count wherever the arrays have them; pass ``map[mask]``
and ``lesion[mask]`` to count the brain alone. What is undefined (a recall without a lesion, a precision
without a prediction) is NaN, never a guess. Measures over all thresholds are in `brainuad.evaluation.curve`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial import KDTree

from brainuad.evaluation._arrays import as_array, as_bool, as_scores, ratio
from brainuad.evaluation.curve import threshold_curve
from brainuad.evaluation.distances import surface


@dataclass(frozen=True)
class Confusion:
    """Counts of voxels by prediction and truth, and the rates that follow from them (NaN where undefined).

    Attributes:
        true_positives: Lesion, and called lesion.
        false_positives: Healthy, but called lesion.
        true_negatives: Healthy, and called healthy.
        false_negatives: Lesion, but called healthy.
    """

    true_positives: int
    false_positives: int
    true_negatives: int
    false_negatives: int

    @property
    def dice(self) -> float:
        """2 TP / (2 TP + FP + FN); NaN if prediction and lesion are both empty."""
        overlap = 2 * self.true_positives
        return ratio(overlap, overlap + self.false_positives + self.false_negatives)

    @property
    def precision(self) -> float:
        """TP / (TP + FP); NaN if the prediction is empty."""
        return ratio(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float:
        """TP / (TP + FN), the sensitivity; NaN if the lesion is empty."""
        return ratio(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def specificity(self) -> float:
        """TN / (TN + FP); NaN if everything is lesion."""
        return ratio(self.true_negatives, self.true_negatives + self.false_positives)

    @property
    def accuracy(self) -> float:
        """(TP + TN) / all; NaN if there are no voxels."""
        right = self.true_positives + self.true_negatives
        return ratio(right, right + self.false_positives + self.false_negatives)

    @property
    def false_positive_rate(self) -> float:
        """FP / (FP + TN); NaN if everything is lesion."""
        return ratio(self.false_positives, self.false_positives + self.true_negatives)

    @property
    def false_discovery_rate(self) -> float:
        """FP / (FP + TP), which the published evaluation reports as "FPR"; NaN if the prediction is empty."""
        return ratio(self.false_positives, self.false_positives + self.true_positives)


def confusion(prediction: Any, lesion: Any) -> Confusion:
    """Return the confusion counts of a binary prediction.

    Args:
        prediction: True where the method sees a lesion, any shape; tensor or array.
        lesion: True in the lesion, same shape.

    Raises:
        ValueError: The shapes differ.
    """
    truth = as_bool(lesion, "lesion")
    called = as_bool(prediction, "prediction", truth.shape)
    both = int(np.count_nonzero(called & truth))
    positives, lesions = int(np.count_nonzero(called)), int(np.count_nonzero(truth))
    return Confusion(both, positives - both, truth.size - positives - lesions + both, lesions - both)


def dice(prediction: Any, lesion: Any) -> float:
    """Return the Dice coefficient of a binary prediction; NaN if it and the lesion are both empty.

    Args:
        prediction: True where the method sees a lesion, any shape; tensor or array.
        lesion: True in the lesion, same shape.

    Raises:
        ValueError: The shapes differ.
    """
    return confusion(prediction, lesion).dice


def hausdorff(prediction: Any, lesion: Any) -> float:
    """Return the Hausdorff distance between two sets of voxels: how far the farthest lies from the other set.

    Args:
        prediction: True where the method sees a lesion, (X, Y, Z) or (X, Y); tensor or array.
        lesion: True in the lesion, same shape.

    Returns:
        Distance between voxel centres in voxels; NaN if either set is empty.

    Raises:
        ValueError: The shapes differ.
    """
    truth = as_bool(lesion, "lesion")
    called = as_bool(prediction, "prediction", truth.shape)
    if not truth.any() or not called.any():
        return math.nan
    missed, invented = truth & ~called, called & ~truth
    distances = [0.0]
    for points, mask in ((missed, called), (invented, truth)):
        if points.any():  # a voxel outside a set is nearest to one of its surface
            distances.append(KDTree(surface(mask)).query(np.argwhere(points))[0].max())
    return float(max(distances))


def reconstruction_errors(image: Any, reconstruction: Any, lesion: Any) -> dict[str, float]:
    """Return the mean absolute (l1) and mean squared (l2) error over all, lesion and healthy voxels.

    Args:
        image: Volume, any shape; tensor or array.
        reconstruction: Volume of the same shape.
        lesion: True in the lesion, same shape.

    Returns:
        ``l1``, ``l1_lesion``, ``l1_healthy``, ``l2``, ``l2_lesion``, ``l2_healthy``; NaN over no voxels.

    Raises:
        ValueError: The shapes differ.
    """
    original = as_array(image).astype(np.float64)
    truth = as_bool(lesion, "lesion", original.shape)
    if as_array(reconstruction).shape != original.shape:
        raise ValueError(f"reconstruction has shape {as_array(reconstruction).shape}, image {original.shape}")
    absolute = np.abs(original - as_array(reconstruction))
    errors = {}
    for name, values in (("l1", absolute), ("l2", absolute**2)):
        errors[name] = _mean(values)
        errors[f"{name}_lesion"] = _mean(values[truth])
        errors[f"{name}_healthy"] = _mean(values[~truth])
    return errors


def scan_score(map: Any, mask: Any) -> float:
    """Return the mean of the map in the brain, the anomaly score of a whole scan; NaN without a brain.

    Args:
        map: Anomaly map, any shape; tensor or array.
        mask: Brain mask of the same shape.

    Raises:
        ValueError: The shapes differ or the map holds NaN.
    """
    scores = as_scores(map, "map")
    return _mean(scores[as_bool(mask, "mask", scores.shape)])


def slice_overlap(prediction: Any, lesion: Any, axis: int = 2) -> dict[str, float]:
    """Return the mean Dice, precision and recall over the slices that hold lesion.

    Args:
        prediction: True where the method sees a lesion, (X, Y, Z); tensor or array.
        lesion: True in the lesion, (X, Y, Z).
        axis: Axis that numbers the slices: 2 for axial; the published evaluation takes 0, the sagittal.

    Returns:
        ``dice``, ``precision``, ``recall``; slices without a prediction are left out of the precision. NaN if
        there is no slice to average.

    Raises:
        ValueError: The shapes differ.
    """
    truth = as_bool(lesion, "lesion")
    called = np.moveaxis(as_bool(prediction, "prediction", truth.shape), axis, 0)
    truth = np.moveaxis(truth, axis, 0)
    counts = [confusion(c, t) for c, t in zip(called, truth, strict=True) if t.any()]
    return {
        name: _mean(np.array([value for c in counts if not math.isnan(value := getattr(c, name))]))
        for name in ("dice", "precision", "recall")
    }


def slice_detection(map: Any, lesion: Any, mask: Any, axis: int = 2) -> dict[str, float]:
    """Return how well a slice's mean score in the brain tells whether the slice holds lesion.

    Args:
        map: Anomaly map (X, Y, Z); tensor or array.
        lesion: True in the lesion, (X, Y, Z).
        mask: Brain mask (X, Y, Z); slices without brain are left out.
        axis: Axis that numbers the slices: 2 for axial; the published evaluation takes 0, the sagittal.

    Returns:
        ``auroc`` and ``average_precision`` over the slices; NaN as `auroc` and `average_precision` are.

    Raises:
        ValueError: The shapes differ or the map holds NaN.
    """
    scores = as_scores(map, "map")
    brain = np.moveaxis(as_bool(mask, "mask", scores.shape), axis, 0)
    truth = np.moveaxis(as_bool(lesion, "lesion", scores.shape), axis, 0)
    slices = list(zip(np.moveaxis(scores, axis, 0), brain, truth, strict=True))
    means = np.array([_mean(values[inside]) for values, inside, _ in slices if inside.any()])
    holds_lesion = np.array([drawn.any() for _, inside, drawn in slices if inside.any()], dtype=bool)
    curve = threshold_curve(means, holds_lesion)
    return {"auroc": curve.auroc(), "average_precision": curve.average_precision()}


def _mean(values: np.ndarray) -> float:
    return float(values.mean(dtype=np.float64)) if values.size else math.nan
