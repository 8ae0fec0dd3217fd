"""Thresholds chosen on validation scans, to be used unchanged on test scans."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

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
    curves = [threshold_curve(map, lesion) for map, lesion in zip(maps, lesions, strict=True)]
    if not curves:
        raise ValueError("no validation scans to find a threshold from")
    pooled = ThresholdCurve(
        np.sort(np.concatenate([curve.lesion for curve in curves])),
        np.sort(np.concatenate([curve.healthy for curve in curves])),
    )
    return pooled.greedy_best_dice()[1]
