"""Pooled measures over all thresholds in constant memory: counts of voxels in fixed bins of the score.

The bins follow from the floating-point format: a score is rounded up to the next float32 number whose mantissa has
``MANTISSA_BITS`` bits. So a bin is at most 2^-11 = 0.05 % of its scores wide whatever their range, there can be no
more than two million, and the counts of two scans add up without agreeing on a range. A bin is named by the number
rounded to, its largest; zero has a bin of its own. Then ``map > name`` is exactly "in a higher bin": what is counted
at a bin's name is exact, and the measures of a `ScoreHistogram` are exactly those of the rounded map. How far they can
lie from those of the map itself follows from the counts; see each measure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import digamma

from brainuad.evaluation._arrays import as_scores, ratio
from brainuad.evaluation.curve import ThresholdCurve, threshold_curve

MANTISSA_BITS = 11
_SHIFT = 23 - MANTISSA_BITS


@dataclass(frozen=True, eq=False)
class ScoreHistogram:
    """Counts of lesion and healthy voxels by score, of one scan or, added up, of many.

    Attributes:
        scores: ``(B,)`` float32, the names of the bins that hold voxels, ascending.
        lesion: ``(B,)`` int64, lesion voxels in each.
        healthy: ``(B,)`` int64, healthy voxels in each.
    """

    scores: np.ndarray
    lesion: np.ndarray
    healthy: np.ndarray

    def __add__(self, other: ScoreHistogram) -> ScoreHistogram:
        """Return the counts of both."""
        scores, place = np.unique(np.concatenate([self.scores, other.scores]), return_inverse=True)
        lesion, healthy = np.zeros((2, len(scores)), dtype=np.int64)
        np.add.at(lesion, place, np.concatenate([self.lesion, other.lesion]))
        np.add.at(healthy, place, np.concatenate([self.healthy, other.healthy]))
        return ScoreHistogram(scores, lesion, healthy)

    @property
    def chance(self) -> float:
        """Fraction of voxels that are lesion: the average precision of a random map; NaN without voxels."""
        lesion, healthy = int(self.lesion.sum()), int(self.healthy.sum())
        return ratio(lesion, lesion + healthy)

    def auroc(self) -> float:
        """Return the area under the ROC curve, voxels of one bin counting as ties; NaN without both kinds."""
        low, high = self.auroc_bounds()
        return (low + high) / 2

    def auroc_bounds(self) -> tuple[float, float]:
        """Return between which values the AUROC of the map itself lies, NaN without voxels of both kinds.

        They come about if in every bin all healthy voxels score above the lesion's, or all below.
        """
        pairs = float(self.lesion.sum()) * float(self.healthy.sum())
        lesion, healthy = self.lesion.astype(np.float64), np.cumsum(self.healthy).astype(np.float64)
        low, high = math.fsum(lesion * (healthy - self.healthy)), math.fsum(lesion * healthy)
        return ratio(low, pairs), ratio(high, pairs)

    def average_precision(self) -> float:
        """Return the average precision; NaN without a lesion. It lies within `average_precision_bounds`."""
        true_positives, false_positives = self._above_or_in()
        gained = self.lesion > 0
        precision = true_positives[gained] / (true_positives[gained] + false_positives[gained])
        return ratio(math.fsum(precision * self.lesion[gained]), float(self.lesion.sum()))

    def average_precision_bounds(self) -> tuple[float, float]:
        """Return between which values the average precision of the map itself lies; NaN without a lesion.

        A lesion voxel has at worst all healthy voxels of its bin above it and each other lesion voxel at a score
        of its own, at best all lesion voxels of its bin beside it and the healthy ones below.
        """
        lesions = int(self.lesion.sum())
        if not lesions:
            return math.nan, math.nan
        true_positives, false_positives = self._above_or_in()
        held = self.lesion > 0
        n, tp, fp = (counts[held].astype(np.float64) for counts in (self.lesion, true_positives, false_positives))
        # sum over i = 1..n of (tp - n + i) / (tp - n + i + fp), by the digamma function
        worst = math.fsum(n - fp * (digamma(tp + fp + 1) - digamma(tp - n + fp + 1)))
        best = math.fsum(n * tp / (tp + fp - self.healthy[held]))
        return worst / lesions, best / lesions

    def best_dice(self) -> tuple[float, float]:
        """Return the largest Dice at the name of a bin and that threshold; both NaN without a lesion.

        ``map > threshold`` has exactly this Dice; a threshold within a bin can have a
        larger one. Of equally good thresholds the highest is taken.
        """
        if not self.lesion.any():
            return math.nan, math.nan
        true_positives, false_positives = self._above_or_in()
        dice = 2 * true_positives / (true_positives + false_positives + self.lesion.sum())
        best = len(dice) - 1 - int(np.argmax(dice[::-1]))
        return float(dice[best]), self._just_below(best)

    def false_positive_threshold(self, fraction: float) -> float:
        """Return the smallest name of a bin that no more than a fraction of the healthy voxels exceeds.

        The smallest threshold of all lies in the same bin.

        Raises:
            ValueError: There are no healthy voxels, or the fraction is not at least 0 and below 1.
        """
        if not 0 <= fraction < 1:
            raise ValueError(f"fraction must be at least 0 and below 1, got {fraction}")
        voxels = int(self.healthy.sum())
        if not voxels:
            raise ValueError("no healthy voxels to find a false-positive threshold from")
        above = voxels - np.cumsum(self.healthy)
        # Rounded, so that 0.1 of 30 voxels is 3 where the product is a hair less.
        allowed = math.floor(round(fraction * voxels, 6))
        return float(self.scores[int(np.argmax(above <= allowed))])

    def precision_recall(self, points: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return recall, precision and threshold at the names of the bins, from high thresholds to low.

        Args:
            points: Keep no more than so many, the first at each of evenly spaced recalls; all by default.

        Returns:
            Three arrays ``(P,)``; recall is NaN without a lesion.
        """
        true_positives, false_positives = (counts[::-1] for counts in self._above_or_in())
        thresholds = np.array([self._just_below(i) for i in range(len(self.scores))][::-1])
        lesions = int(self.lesion.sum())
        recall = true_positives / lesions if lesions else np.full(len(thresholds), math.nan)
        precision = true_positives / (true_positives + false_positives)
        if points is not None and len(thresholds) > points:
            kept = np.unique(np.searchsorted(recall, np.linspace(0, 1, points)))
            recall, precision, thresholds = recall[kept], precision[kept], thresholds[kept]
        return recall, precision, thresholds

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the counts as arrays for ``np.savez``."""
        return dict(vars(self))

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> ScoreHistogram:
        """Return the counts that `to_arrays` gave."""
        return cls(
            np.asarray(arrays["scores"], dtype=np.float32),
            np.asarray(arrays["lesion"], dtype=np.int64),
            np.asarray(arrays["healthy"], dtype=np.int64),
        )

    def _just_below(self, index: int) -> float:
        """Return the threshold that this bin and all higher ones exceed."""
        below = self.scores[index - 1 : index] if index else _names(_keys(self.scores[:1]) - 1)
        return float(below[0])

    def _above_or_in(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the lesion and the healthy voxels in each bin and all higher ones."""
        return np.cumsum(self.lesion[::-1])[::-1], np.cumsum(self.healthy[::-1])[::-1]


def score_histogram(map: Any, lesion: Any = None) -> ScoreHistogram:
    """Return the counts of a scan's voxels by score; counts of scans may be added.

    Args:
        map: Scores of the voxels that count, any shape; tensor or array. They are rounded to float32.
        lesion: True in the lesion, same shape; all voxels are healthy by default.

    Raises:
        ValueError: The shapes differ or the map holds NaN.
    """
    scores = as_scores(map, "map")
    return curve_histogram(threshold_curve(scores, np.zeros(scores.shape, bool) if lesion is None else lesion))


def curve_histogram(curve: ThresholdCurve) -> ScoreHistogram:
    """Return the counts of a scan's voxels by score where they have been sorted; they are rounded to float32."""
    bins = [_bins(scores.astype(np.float32, copy=False)) for scores in (curve.lesion, curve.healthy)]
    keys = np.concatenate([kind for kind, _ in bins])
    if not keys.size:
        return ScoreHistogram(np.empty(0, np.float32), np.empty(0, np.int64), np.empty(0, np.int64))
    first = int(keys.min())
    counts = np.zeros((2, int(keys.max()) - first + 1), dtype=np.int64)
    for row, (kind, voxels) in zip(counts, bins, strict=True):
        row[kind - first] = voxels
    used = np.flatnonzero(counts.any(axis=0))
    return ScoreHistogram(_names(used + first), *counts[:, used])


def _bins(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the bins, as `_keys` has them, and the numbers in them of ascending float32 scores."""
    keys = _keys(scores)
    starts = np.flatnonzero(np.diff(keys, prepend=keys[:1] - 1))
    return keys[starts], np.diff(starts, append=len(keys))


def empty_histogram() -> ScoreHistogram:
    """Return the histogram of no voxels, to add others to."""
    return score_histogram(np.empty(0, np.float32))


def _keys(scores: np.ndarray) -> np.ndarray:
    """Return the bins of float32 scores as integers in the order of the scores, 0 that of zero."""
    bits = np.abs(scores).view(np.int32)
    up = (bits + ((1 << _SHIFT) - 1)) >> _SHIFT  # 0 stays 0
    below = scores < 0
    return np.where(below, -(bits >> _SHIFT), up) if below.any() else up


def _names(keys: np.ndarray) -> np.ndarray:
    """Return the largest float32 of each bin."""
    sizes = (np.abs(keys) << _SHIFT).astype(np.int32).view(np.float32)
    return np.where(keys < 0, -sizes, sizes)
