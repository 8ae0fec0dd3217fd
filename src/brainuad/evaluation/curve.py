"""All thresholds of an anomaly map at once: AUROC, average precision and the best Dice from one sort.

Sorting the scores of lesion and healthy voxels separately is all these measures need: the confusion counts at
any threshold are two binary searches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from brainuad.evaluation._arrays import as_bool, as_scores, ratio

GREEDY_STEPS = 10


@dataclass(frozen=True)
class ThresholdCurve:
    """The sorted scores of lesion voxels and of healthy voxels.

    Build it with `threshold_curve` where several of its measures are wanted. Voxels are called lesion where
    their score is greater than the threshold. Measures that are undefined are NaN.

    Attributes:
        lesion: Scores inside the lesion, ascending.
        healthy: Scores outside, ascending.
    """

    lesion: np.ndarray
    healthy: np.ndarray

    def auroc(self) -> float:
        """Return the area under the ROC curve, ties counting one half; NaN without voxels of both kinds."""
        _, false_positives, gained, scores = self._steps
        below = len(self.healthy) - false_positives
        not_above = np.searchsorted(self.healthy, scores, side="right")
        return ratio(int((below + not_above) @ gained) / 2, len(self.lesion) * len(self.healthy))

    def average_precision(self) -> float:
        """Return the sum of precision times the gain in recall over all thresholds; NaN without a lesion.

        That is the step-wise area under the precision-recall curve, without interpolation, as scikit-learn
        has it.
        """
        if len(self.lesion) == 0:
            return math.nan
        true_positives, false_positives, gained, _ = self._steps
        return float(np.sum(gained * true_positives / (true_positives + false_positives)) / len(self.lesion))

    def best_dice(self) -> tuple[float, float]:
        """Return the largest Dice over all thresholds and a threshold that reaches it.

        Only thresholds just below a lesion voxel's score can be best: lowering one further adds healthy
        voxels. Of equally good thresholds the highest is taken. It is the next lower score in the map, so
        ``map > threshold`` gives the Dice; where every voxel is to be called lesion it lies just below the
        smallest score. Both are NaN without a lesion.
        """
        if len(self.lesion) == 0:
            return math.nan, math.nan
        true_positives, false_positives, _, scores = self._steps
        dice = 2 * true_positives / (true_positives + false_positives + len(self.lesion))
        best = len(dice) - 1 - int(np.argmax(dice[::-1]))
        return float(dice[best]), self._just_below(scores[best])

    def dice_above(self, threshold: float) -> float:
        """Return the Dice of ``map > threshold``; NaN if it and the lesion are both empty."""
        true_positives, false_positives = (
            # In the map's own precision, in which NumPy and PyTorch compare it with a number.
            len(scores) - int(np.searchsorted(scores, scores.dtype.type(threshold), side="right"))
            for scores in (self.lesion, self.healthy)
        )
        return ratio(2 * true_positives, true_positives + false_positives + len(self.lesion))

    def greedy_best_dice(self) -> tuple[float, float]:
        """Return the Dice and the threshold that the published evaluation's search finds.

        Ten times it halves the interval of thresholds, (0, maximum) at first, and keeps the half whose middle
        gives the larger Dice, the upper one if they are equal; the best middle seen is the result. It can
        miss the best Dice. Both are NaN without a lesion.
        """
        if len(self.lesion) == 0:
            return math.nan, math.nan
        low, high = 0.0, float(max(scores[-1] for scores in (self.lesion, self.healthy) if len(scores)))
        best = (-math.inf, math.nan)
        for _ in range(GREEDY_STEPS):
            quarter = (high - low) / 4
            middle = low + 2 * quarter
            lower, upper = self.dice_above(low + quarter), self.dice_above(high - quarter)
            if upper >= lower:
                candidate = (upper, high - quarter)
                low = middle
            else:
                candidate = (lower, low + quarter)
                high = middle
            if candidate[0] >= best[0]:
                best = candidate
        return best

    @cached_property
    def _steps(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """For each distinct lesion score ascending, counts of voxels at or above it.

        (true positives, false positives, lesion voxels with just this score, the scores).
        """
        scores, first, gained = np.unique(self.lesion, return_index=True, return_counts=True)
        true_positives = len(self.lesion) - first
        false_positives = len(self.healthy) - np.searchsorted(self.healthy, scores, side="left")
        return true_positives, false_positives, gained, scores

    def _just_below(self, score: np.floating) -> float:
        lower = [
            scores[index - 1]
            for scores in (self.lesion, self.healthy)
            if (index := int(np.searchsorted(scores, score, side="left"))) > 0
        ]
        return float(max(lower) if lower else np.nextafter(score, score.dtype.type(-math.inf)))


def threshold_curve(map: Any, lesion: Any) -> ThresholdCurve:
    """Return the sorted scores from which every threshold's counts follow.

    Args:
        map: Anomaly map, any shape; tensor or array.
        lesion: True in the lesion, same shape.

    Raises:
        ValueError: The shapes differ or the map holds NaN.
    """
    scores, truth = as_scores(map, "map"), as_bool(lesion, "lesion")
    if scores.shape != truth.shape:
        raise ValueError(f"map has shape {scores.shape}, lesion {truth.shape}")
    return ThresholdCurve(np.sort(scores[truth]), np.sort(scores[~truth]))


def auroc(map: Any, lesion: Any) -> float:
    """Return the area under the ROC curve; NaN without both lesion and healthy voxels.

    Args:
        map: Anomaly map, any shape; tensor or array.
        lesion: True in the lesion, same shape.

    Raises:
        ValueError: The shapes differ or the map holds NaN.
    """
    return threshold_curve(map, lesion).auroc()


def average_precision(map: Any, lesion: Any) -> float:
    """Return the average precision (AUPRC); NaN without a lesion. See `ThresholdCurve.average_precision`.

    Args:
        map: Anomaly map, any shape; tensor or array.
        lesion: True in the lesion, same shape.

    Raises:
        ValueError: The shapes differ or the map holds NaN.

    Examples:
        >>> round(average_precision(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])), 3)
        0.833
    """
    return threshold_curve(map, lesion).average_precision()


def best_dice(map: Any, lesion: Any) -> tuple[float, float]:
    """Return the largest Dice over all thresholds and a threshold t such that ``map > t`` reaches it.

    See `ThresholdCurve.best_dice`. Chosen with the truth in hand, it is an upper bound and no result of a
    method.

    Args:
        map: Anomaly map, any shape; tensor or array.
        lesion: True in the lesion, same shape.

    Returns:
        (dice, threshold), both NaN without a lesion.

    Raises:
        ValueError: The shapes differ or the map holds NaN.

    Examples:
        >>> best_dice(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True]))
        (0.8, 0.1)
    """
    return threshold_curve(map, lesion).best_dice()


def greedy_best_dice(map: Any, lesion: Any) -> tuple[float, float]:
    """Return the Dice and threshold of the published evaluation's search, which may miss the best.

    See `ThresholdCurve.greedy_best_dice`.

    Args:
        map: Anomaly map, any shape; tensor or array.
        lesion: True in the lesion, same shape.

    Returns:
        (dice, threshold), both NaN without a lesion.

    Raises:
        ValueError: The shapes differ or the map holds NaN.
    """
    return threshold_curve(map, lesion).greedy_best_dice()
