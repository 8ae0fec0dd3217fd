"""Figures over subjects: means with bootstrap intervals, paired differences with permutation tests.

Draws are kept for the next measure of as many subjects; `scipy.stats.bootstrap` and `permutation_test` would make them
anew at each of hundreds of calls, which takes many times as long.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

from brainuad.evaluation.curve import threshold_curve

RESAMPLES = 10_000
EXACT_UP_TO = 16  # subjects whose 2^16 exchanges are all looked at
BLOCK = 2**21  # draws at a time, which bounds the memory whatever the number of subjects


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
    values: Iterable[float], *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
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
    array = np.array([value for value in values if not math.isnan(value)], dtype=np.float64)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    if len(array) < 2:
        mean = float(array[0]) if len(array) else math.nan
        return Summary(mean, math.nan, len(array), math.nan, math.nan)
    mean, sd = float(array.mean()), float(array.std(ddof=1))
    if np.ptp(array) == 0:
        return Summary(mean, sd, len(array), mean, mean)
    weighted = array / len(array)
    blocks = _blocks(len(array), resamples)
    means = np.concatenate([_draws(len(array), rows, seed + offset) @ weighted for offset, rows in blocks])
    low, high = _bca_interval(means, mean, [array - mean], confidence)
    return Summary(mean, sd, len(array), low, high)


def paired_difference(a: Iterable[float], b: Iterable[float], *, resamples: int = RESAMPLES, seed: int = 0) -> Summary:
    """Return mean, deviation and 95 % interval of the differences a - b within subjects, as `summarise` does.

    Args:
        a: One value a subject.
        b: Values of the same subjects in the same order. Where either is NaN the subject is left out.
        resamples: Bootstrap samples.
        seed: Seeds them.

    Raises:
        ValueError: The numbers of values differ.
    """
    return summarise(_differences(a, b), resamples=resamples, seed=seed)


@dataclass(frozen=True)
class Ratio:
    """The ratio of two means over the same subjects.

    Attributes:
        value: Mean of the one through mean of the other; NaN without subjects.
        n: Number of subjects.
        low: Lower end of its confidence interval; NaN for fewer than two subjects.
        high: Upper end.
    """

    value: float
    n: int
    low: float
    high: float


def paired_ratio(a: Iterable[float], b: Iterable[float], *, resamples: int = RESAMPLES, seed: int = 0) -> Ratio:
    """Return the ratio mean(a) / mean(b) with its 95 % BCa interval, drawing subjects with both of their values.

    Args:
        a: One value a subject.
        b: Values above 0 of the same subjects in the same order. Where either is NaN the subject is left out.
        resamples: Bootstrap samples.
        seed: Seeds them.

    Raises:
        ValueError: The numbers of values differ, or a value to divide by is not above 0.
    """
    above, below = np.array(list(a), dtype=np.float64), np.array(list(b), dtype=np.float64)
    kept = ~np.isnan(_differences(above, below))
    above, below = above[kept], below[kept]
    if (below <= 0).any():
        raise ValueError(f"values to divide by must be above 0, the least is {below.min():g}")
    n = len(below)
    value = float(above.sum() / below.sum()) if n else math.nan
    if n < 2:
        return Ratio(value, n, math.nan, math.nan)
    drawn = [_draws(n, rows, seed + offset) for offset, rows in _blocks(n, resamples)]
    values = np.concatenate([(draws @ above) / (draws @ below) for draws in drawn])
    low, high = _bca_interval(values, value, [above - value * below])
    return Ratio(value, n, low, high)


def paired_permutation_test(
    a: Iterable[float], b: Iterable[float], *, resamples: int = RESAMPLES, seed: int = 0
) -> float:
    """Return the two-sided p-value of the mean difference a - b under exchange of a and b within subjects.

    Up to ``EXACT_UP_TO`` subjects all exchanges are enumerated, beyond that so many are drawn, and the observed one
    counts among them (Phipson and Smyth, "Permutation p-values should never be zero", 2010).

    Args:
        a: One value a subject.
        b: Values of the same subjects in the same order. Where either is NaN the subject is left out.
        resamples: Exchanges drawn for many subjects; no p-value is smaller than 1 / (resamples + 1).
        seed: Seeds them.

    Returns:
        The p-value; NaN without a subject.

    Raises:
        ValueError: The numbers of values differ.
    """
    differences = _differences(a, b)
    differences = differences[~np.isnan(differences)]
    if not differences.size:
        return math.nan
    observed = abs(differences.sum())
    # Exchanges that give the same sum in another order of addition are ties.
    enough = observed - 1e-12 * np.abs(differences).sum()
    if len(differences) <= EXACT_UP_TO:
        sums = np.zeros(1)
        for difference in differences:
            sums = np.concatenate([sums + difference, sums - difference])
        return float(np.mean(np.abs(sums) >= enough))
    as_large = 1
    for offset, rows in _blocks(len(differences), resamples):
        sums = _signs(len(differences), rows, seed + offset) @ differences
        as_large += int(np.count_nonzero(np.abs(sums) >= enough))
    return as_large / (1 + resamples)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number by Holm's step-down method, in the same order.

    Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Stat. 6, 1979. A NaN stays NaN and
    counts for none.

    Raises:
        ValueError: A p-value lies outside 0 to 1.
    """
    array = np.asarray(p_values, dtype=np.float64)
    if (array < 0).any() or (array > 1).any():
        raise ValueError(f"p-values must lie between 0 and 1, got {list(p_values)}")
    adjusted = np.full(len(array), math.nan)
    order = np.argsort(array, kind="stable")[: int(np.count_nonzero(~np.isnan(array)))]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(factors * array[order]), 1)
    return [float(value) for value in adjusted]


def by_subject(subjects: Sequence[Hashable], values: Sequence[float]) -> dict[Any, float]:
    """Return one value a subject: the mean of its values over seeds, folds or scans.

    Subjects are the unit of every interval and test here; to count a subject once a seed would claim more
    subjects than there are.

    Args:
        subjects: Subject of each value.
        values: NaN where undefined, which is left out of the mean.

    Returns:
        Subject to mean, in order of first appearance; NaN where all of a subject's values are.

    Raises:
        ValueError: The numbers of subjects and values differ.
    """
    gathered: dict[Hashable, list[float]] = {}
    for subject, value in zip(subjects, values, strict=True):
        of_subject = gathered.setdefault(subject, [])
        if not math.isnan(value):
            of_subject.append(value)
    return {subject: math.fsum(v) / len(v) if v else math.nan for subject, v in gathered.items()}


@dataclass(frozen=True)
class ScanAuroc:
    """How well one number a scan tells anomalous from healthy scans.

    Attributes:
        value: Area under the ROC curve, ties counting one half; NaN without scans of both kinds.
        low: Lower end of its confidence interval; NaN for fewer than two scans of either kind.
        high: Upper end.
        anomalous: Number of anomalous scans.
        healthy: Number of healthy scans.
    """

    value: float
    low: float
    high: float
    anomalous: int
    healthy: int


def scan_auroc(
    anomalous: Iterable[float], healthy: Iterable[float], *, resamples: int = RESAMPLES, seed: int = 0
) -> ScanAuroc:
    """Return the AUROC over scans with a 95 % BCa interval, drawing anomalous and healthy scans separately.

    Where the two kinds come from different scanners or sites, it may measure those. Where they are separated
    perfectly every draw is, and the interval is [1, 1] however few scans there are.

    Args:
        anomalous: One score a subject with an anomaly; NaN is left out.
        healthy: One score a healthy subject.
        resamples: Bootstrap samples.
        seed: Seeds them.
    """
    ill, well = (np.array([v for v in values if not math.isnan(v)]) for values in (anomalous, healthy))
    value = threshold_curve(np.concatenate([ill, well]), np.arange(len(ill) + len(well)) < len(ill)).auroc()
    if min(len(ill), len(well)) < 2:
        return ScanAuroc(value, math.nan, math.nan, len(ill), len(well))
    above = (np.sign(ill[:, None] - well) + 1) / 2
    values = np.empty(0)
    for offset, rows in _blocks(max(above.shape), resamples):
        ours = _draws(len(ill), rows, seed + offset)
        theirs = _draws(len(well), rows, seed + offset + 1)
        values = np.append(values, np.sum(ours @ above * theirs, axis=1) / above.size)
    influences = [above.mean(1) - value, above.mean(0) - value]
    low, high = _bca_interval(values, value, influences)
    return ScanAuroc(value, low, high, len(ill), len(well))


def _differences(a: Iterable[float], b: Iterable[float]) -> np.ndarray:
    left, right = np.array(list(a), dtype=np.float64), np.array(list(b), dtype=np.float64)
    if left.shape != right.shape:
        raise ValueError(f"there are {len(left)} values and {len(right)} to pair them with")
    return left - right


def _blocks(subjects: int, resamples: int) -> Iterator[tuple[int, int]]:
    """Yield what to add to the seed, and the number of samples to draw, for each block."""
    rows = max(1, BLOCK // subjects)
    for block, start in enumerate(range(0, resamples, rows)):
        yield block << 32, min(rows, resamples - start)


def _draws(subjects: int, resamples: int, seed: int) -> np.ndarray:
    """Return how often each subject is drawn in each bootstrap sample, ``(resamples, subjects)`` float64."""
    return _counts(subjects, resamples, seed).astype(np.float64)


@lru_cache(maxsize=16)  # blocks: the same for every measure over as many subjects
def _counts(subjects: int, resamples: int, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).integers(subjects, size=(resamples, subjects))
    drawn += subjects * np.arange(resamples)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=resamples * subjects)
    return counts.reshape(resamples, subjects).astype(np.min_scalar_type(counts.max()))


@lru_cache(maxsize=4)
def _signs(subjects: int, resamples: int, seed: int) -> np.ndarray:
    """Return random signs, ``(resamples, subjects)``."""
    return np.random.default_rng(seed).integers(2, size=(resamples, subjects)) * 2.0 - 1.0


def _bca_interval(
    values: np.ndarray, estimate: float, influences: Sequence[np.ndarray], confidence: float = 0.95
) -> tuple[float, float]:
    """Return the BCa interval of an estimate from its bootstrap values.

    Args:
        values: The estimate of each bootstrap sample.
        estimate: The estimate of the data.
        influences: For each group of subjects, how much more each one's contribution is than the mean one, from
            which the jackknife's acceleration follows.
        confidence: Coverage.
    """
    tails = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    below = (np.count_nonzero(values < estimate) + np.count_nonzero(values <= estimate)) / (2 * len(values))
    spread = sum(float(np.sum(u**2)) / len(u) ** 2 for u in influences)
    if 0 < below < 1 and spread > 0:
        bias = ndtri(below)
        skew = sum(float(np.sum(u**3)) / len(u) ** 3 for u in influences)
        z = bias + ndtri(tails)
        tails = ndtr(bias + z / (1 - skew / (6 * spread**1.5) * z))
    low, high = np.quantile(values, tails)
    return float(low), float(high)
