"""Thresholds chosen on validation scans, to be used unchanged on test scans."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from brainuad.evaluation._arrays import as_bool, as_scores
from brainuad.evaluation.curve import ThresholdCurve, threshold_curve

FALSE_POSITIVE_FRACTIONS = (0.1, 0.05, 0.01, 0.001)


def pooled_greedy_threshold(maps: Iterable[Any], lesions: Iterable[Any]) -> float:
    """Return the published evaluation's threshold: its search for the best Dice, on all scans pooled.

    Args:
        maps: Anomaly maps of validation scans with lesions, any shapes; tensors or arrays.
        lesions: Their lesions, in the same order.

    Returns:
        The threshold; NaN if no scan has a lesion.

    Raises:
        ValueError: Maps and lesions differ in number or shape, there are none, or a map holds NaN.
    """
    return _pooled_curve(maps, lesions).greedy_best_dice()[1]


def pooled_best_threshold(maps: Iterable[Any], lesions: Iterable[Any]) -> float:
    """Return the threshold with the best Dice over the voxels of all scans pooled.

    Args:
        maps: Anomaly maps of validation scans with lesions, any shapes; tensors or arrays.
        lesions: Their lesions, in the same order.

    Returns:
        The threshold; NaN if no scan has a lesion.

    Raises:
        ValueError: Maps and lesions differ in number or shape, there are none, or a map holds NaN.
    """
    return _pooled_curve(maps, lesions).best_dice()[1]


def false_positive_thresholds(
    maps: Iterable[Any], masks: Iterable[Any], fractions: Sequence[float] = FALSE_POSITIVE_FRACTIONS
) -> dict[float, float]:
    """Return thresholds that call at most given fractions of healthy brain anomalous.

    Each is a score of the pooled brain voxels of healthy scans, the smallest such that no more than the
    fraction is greater. No lesion is needed to find it.

    Args:
        maps: Anomaly maps of healthy validation scans, any shapes; tensors or arrays.
        masks: Their brain masks, in the same order.
        fractions: False-positive fractions, from 0 to below 1.

    Returns:
        Fraction to threshold, in the order of ``fractions``.

    Raises:
        ValueError: Maps and masks differ in number or shape, they hold no brain voxels, a map holds NaN, or a
            fraction is out of range.
    """
    bad = [fraction for fraction in fractions if not 0 <= fraction < 1]
    if bad:
        raise ValueError(f"fractions must be at least 0 and below 1, got {bad}")
    pooled = []
    for map, mask in zip(maps, masks, strict=True):
        scores = as_scores(map, "map")
        pooled.append(scores[as_bool(mask, "mask", scores.shape)])
    scores = np.concatenate(pooled) if pooled else np.empty(0)
    if scores.size == 0:
        raise ValueError("no brain voxels to find false-positive thresholds from")
    # Ranks, not an interpolated quantile, so that the fraction is never exceeded. The rounding keeps 0.1 of
    # 30 voxels at 3 where the product is a hair less.
    ranks = [scores.size - 1 - int(np.floor(round(fraction * scores.size, 6))) for fraction in fractions]
    scores.partition(sorted(set(ranks)))
    return {fraction: float(scores[rank]) for fraction, rank in zip(fractions, ranks, strict=True)}


def _pooled_curve(maps: Iterable[Any], lesions: Iterable[Any]) -> ThresholdCurve:
    curves = [threshold_curve(map, lesion) for map, lesion in zip(maps, lesions, strict=True)]
    if not curves:
        raise ValueError("no validation scans to find a threshold from")
    return ThresholdCurve(
        np.sort(np.concatenate([curve.lesion for curve in curves])),
        np.sort(np.concatenate([curve.healthy for curve in curves])),
    )
