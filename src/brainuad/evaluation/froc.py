"""Free-response ROC: the share of lesions found against false positives a scan, over thresholds.

At each of a fixed list of thresholds the map is binarised, small components are dropped, and the components are
matched with the lesions as in `brainuad.evaluation.lesions`. So the curve passes through the lesion-wise figures
reported at any of its thresholds. What it keeps of a scan are a few counts a threshold; those of scans add up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from brainuad.evaluation._arrays import as_scores, bounding_box
from brainuad.evaluation.lesions import (
    CONTRAST_CLASSES,
    MIN_OVERLAP,
    SIZE_CLASSES,
    Lesions,
    contrast_class,
    match_lesions,
    size_class,
)

FALSE_POSITIVES_A_SCAN = (1, 2, 4, 8, 16, 32)
CLASSES = (*SIZE_CLASSES, *CONTRAST_CLASSES)  # of lesions; each has a size, not each a contrast


@dataclass(frozen=True, eq=False)
class Froc:
    """Counts of lesions and false positives over thresholds, of one scan or, added up, of many.

    Attributes:
        thresholds: ``(T,)``, ascending.
        scans: Number of scans, with and without lesions.
        lesions: ``(8,)`` number of lesions in each of ``SIZE_CLASSES`` and, counted again, of ``CONTRAST_CLASSES``.
        found: ``(T, 8)`` number of them found.
        false_positives: ``(T,)`` number of predicted components on no lesion.
    """

    thresholds: np.ndarray
    scans: int
    lesions: np.ndarray
    found: np.ndarray
    false_positives: np.ndarray

    def __add__(self, other: Froc) -> Froc:
        """Return the counts of both.

        Raises:
            ValueError: The thresholds differ.
        """
        if not np.array_equal(self.thresholds, other.thresholds):
            raise ValueError("curves over different thresholds cannot be added")
        return Froc(
            self.thresholds,
            self.scans + other.scans,
            self.lesions + other.lesions,
            self.found + other.found,
            self.false_positives + other.false_positives,
        )

    def false_positives_a_scan(self) -> np.ndarray:
        """Return the mean number of false positives a scan at each threshold, ``(T,)``."""
        return self.false_positives / self.scans

    def sensitivity(self, name: str | None = None) -> np.ndarray:
        """Return the share of lesions found at each threshold, ``(T,)``; NaN without lesions.

        Args:
            name: One of ``SIZE_CLASSES`` or ``CONTRAST_CLASSES``; all lesions by default.
        """
        chosen = _columns(name)
        lesions = int(self.lesions[chosen].sum())
        found = self.found[:, chosen].sum(axis=1)
        return found / lesions if lesions else np.full(len(found), math.nan)

    def sensitivity_at(self, false_positives_a_scan: float, name: str | None = None) -> float:
        """Return the best sensitivity at no more than so many false positives a scan; NaN without lesions.

        Nothing is interpolated: it is reached at one of the thresholds, and 0 where none is strict enough. Thresholds
        below the first that has too many do not count: there components merge, until the whole brain is one false
        positive that covers every lesion.
        """
        if not self.lesions[_columns(name)].any():
            return math.nan
        few = self.false_positives_a_scan() <= false_positives_a_scan
        down_to_the_first_of_many = np.logical_and.accumulate(few[::-1])[::-1]
        return float(self.sensitivity(name)[down_to_the_first_of_many].max(initial=0.0))

    def mean_sensitivity(self, rates: Sequence[float] = FALSE_POSITIVES_A_SCAN, name: str | None = None) -> float:
        """Return the mean of the sensitivities at given false positives a scan, as LUNA16 ranks by.

        Setio et al., Medical Image Analysis 42, 2017, with the rates 1/8 to 8; maps of the brain need more.
        """
        return float(np.mean([self.sensitivity_at(rate, name) for rate in rates]))

    def to_dict(self) -> dict[str, Any]:
        """Return the counts as JSON values."""
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in vars(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Froc:
        """Return the curve that `to_dict` wrote."""
        thresholds = np.array(values["thresholds"], dtype=np.float64)
        return cls(
            thresholds,
            int(values["scans"]),
            np.array(values["lesions"], dtype=np.int64),
            np.array(values["found"], dtype=np.int64).reshape(len(thresholds), len(CLASSES)),
            np.array(values["false_positives"], dtype=np.int64),
        )


def _columns(name: str | None) -> slice:
    """Return where a class stands in ``CLASSES``; all sizes, so each lesion once, for None."""
    if name is None:
        return slice(len(SIZE_CLASSES))
    place = CLASSES.index(name)
    return slice(place, place + 1)


def scan_froc(
    map: Any, lesions: Lesions, thresholds: Sequence[float], *, min_overlap: float = MIN_OVERLAP, min_voxels: int = 1
) -> Froc:
    """Return one scan's counts over thresholds; counts of scans may be added.

    Args:
        map: Anomaly map (X, Y, Z); tensor or array. Voxels that do not count must lie below every threshold.
        lesions: The scan's lesions, from `brainuad.evaluation.find_lesions`; a healthy scan has none.
        thresholds: The same for all scans, and of the same score; false-positive thresholds of healthy scans,
            say.
        min_overlap: As in `brainuad.evaluation.match_lesions`.
        min_voxels: Predicted components smaller than this are dropped.

    Raises:
        ValueError: The map holds NaN, has another shape than the lesions, or there are no thresholds.
    """
    scores = as_scores(map, "map")
    if scores.shape != lesions.labels.shape:
        raise ValueError(f"map has shape {scores.shape}, lesions {lesions.labels.shape}")
    levels = np.unique(np.asarray(thresholds, dtype=np.float64))
    if not levels.size or np.isnan(levels).any():
        raise ValueError(f"thresholds must be numbers and at least one, got {list(thresholds)}")
    # (lesions, 8): which classes each is of
    sizes, contrasts = size_class(lesions.volume_ml), contrast_class(lesions.contrast)
    of_class = np.hstack(
        [sizes[:, None] == np.arange(len(SIZE_CLASSES)), contrasts[:, None] == np.arange(len(CONTRAST_CLASSES))]
    )
    box = bounding_box(scores > scores.dtype.type(levels[0]))  # elsewhere nothing is ever predicted
    scores, lesions = scores[box], replace(lesions, labels=lesions.labels[box])
    found = np.zeros((len(levels), len(CLASSES)), dtype=np.int64)
    false_positives = np.zeros(len(levels), dtype=np.int64)
    for i, level in enumerate(levels):
        match = match_lesions(
            scores > scores.dtype.type(level), lesions, min_overlap=min_overlap, min_voxels=min_voxels
        )
        found[i] = of_class[match.found].sum(axis=0)
        false_positives[i] = match.counts.false_positives
    return Froc(levels, 1, of_class.sum(axis=0), found, false_positives)
