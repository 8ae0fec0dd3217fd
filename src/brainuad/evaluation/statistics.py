"""Figures over subjects: mean, standard deviation and a bootstrap confidence interval."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Summary:
    """A measure over subjects.

    Attributes:
        mean: Mean over the subjects for whom the measure is defined; NaN without any.
        sd: Sample standard deviation (n - 1); NaN for fewer than two.
        n: Number of those subjects.
        low: Lower end of the confidence interval of the mean; NaN for fewer than two.
        high: Upper end.
    """

    mean: float
    sd: float
    n: int
    low: float
    high: float


def summarise(
    values: Iterable[float], *, confidence: float = 0.95, resamples: int = 9999, seed: int = 0
) -> Summary:
    """Return mean, standard deviation and bootstrap confidence interval of a measure over subjects.

    The interval is the bias-corrected and accelerated one (BCa; Efron, "Better bootstrap confidence
    intervals", JASA 82, 1987), drawing subjects with replacement; where its correction is undefined, as it is
    when nearly all values agree, the plain percentile interval.

    Args:
        values: One value a subject; NaN where the measure is undefined, which is left out.
        confidence: Coverage of the interval.
        resamples: Bootstrap samples.
        seed: Seeds them: the same values and seed give the same interval.

    Raises:
        ValueError: ``confidence`` does not lie between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    array = np.array([value for value in values if not math.isnan(value)], dtype=np.float64)
    if len(array) < 2:
        mean = float(array[0]) if len(array) else math.nan
        return Summary(mean, math.nan, len(array), math.nan, math.nan)
    mean, sd = float(array.mean()), float(array.std(ddof=1))
    if np.ptp(array) == 0:
        return Summary(mean, sd, len(array), mean, mean)
    low, high = _interval(array, "BCa", confidence, resamples, seed)
    if math.isnan(low) or math.isnan(high):
        low, high = _interval(array, "percentile", confidence, resamples, seed)
    return Summary(mean, sd, len(array), low, high)


def _interval(
    array: np.ndarray, method: str, confidence: float, resamples: int, seed: int
) -> tuple[float, float]:
    with warnings.catch_warnings():
        # SciPy warns where BCa is undefined and returns NaN, which the caller handles.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        interval = stats.bootstrap(
            (array,),
            np.mean,
            n_resamples=resamples,
            batch=1000,
            confidence_level=confidence,
            method=method,
            random_state=np.random.default_rng(seed),
        ).confidence_interval
    return float(interval.low), float(interval.high)
