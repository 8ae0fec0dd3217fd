"""The calibration of a model, as stored in ``calibration.json``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from brainuad.calibration._values import number, numbers, sequence, table
from brainuad.calibration.appearance import HealthyAppearance
from brainuad.calibration.findings import HealthyFindings
from brainuad.errors import InputError

FORMAT = 2
FEW_SCANS = 20  # with fewer, thresholds depend much on the choice of subjects
Table = Mapping[str, Mapping[float, Any]]


@dataclass(frozen=True)
class Calibration:
    """Statistics of a model's maps on healthy scans.

    Attributes:
        scans: Number of healthy scans.
        voxels: Total number of their brain voxels on the model's grid.
        thresholds: By score and false-positive fraction, the map value that this fraction of healthy brain exceeds.
        postprocess: Maps were eroded and median-filtered.
        seed: Seed of the reconstructions.
        brainuad: Version that made it; "" if unknown, and then all following fields are empty.
        made_from: "raw scans" (processed like a user's scan) or "prepared scans".
        subjects: Names of the scans.
        left_out: Names of given scans that could not be used.
        intervals: By score and fraction, the 95 % interval of the threshold from a bootstrap over scans.
        scan_scores: By score, the scans' scores, sorted.
        appearance: Appearance of the scans.
        findings: By score and fraction, the scans' findings at that threshold; only for the scores of users.
    """

    scans: int
    voxels: int
    thresholds: Table
    postprocess: bool = True
    seed: int = 0
    brainuad: str = ""
    made_from: str = ""
    subjects: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    intervals: Table = field(default_factory=dict)
    scan_scores: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    appearance: HealthyAppearance = field(default_factory=HealthyAppearance)
    findings: Mapping[str, Mapping[float, HealthyFindings]] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Any) -> Calibration:
        """Read the values of `to_dict`, or of the first format, which has only thresholds and counts.

        Raises:
            ValueError: An entry is missing or cannot be used, or the format is newer.
        """
        if not isinstance(values, dict):
            raise ValueError("holds no object")
        written = values.get("format", 1)
        if not isinstance(written, int) or written > FORMAT:
            raise ValueError(f"has format {written!r}; this version reads up to {FORMAT}: update brainuad")
        scores, appearance = table(values, "scan_scores", {}), table(values, "looks", {})
        return cls(
            scans=int(number(values, "scans")),
            voxels=int(number(values, "voxels")),
            thresholds=_by_fraction(table(values, "thresholds"), number),
            postprocess=values.get("postprocess") is not False,
            seed=int(number(values, "seed")) if "seed" in values else 0,
            brainuad=str(values.get("brainuad", "")),
            made_from=str(values.get("made_from", "")),
            subjects=tuple(map(str, sequence(values, "subjects", []))),
            left_out=tuple(map(str, sequence(values, "left_out", []))),
            intervals=_by_fraction(table(values, "intervals", {}), _ends),
            scan_scores={score: numbers(scores, score) for score in scores},
            appearance=HealthyAppearance.from_dict(appearance) if appearance else HealthyAppearance(),
            findings=_by_fraction(
                table(values, "findings", {}), lambda known, name: HealthyFindings.from_dict(table(known, name))
            ),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, without unknown ones."""
        values = {
            "format": FORMAT,
            "brainuad": self.brainuad,
            "scans": self.scans,
            "subjects": list(self.subjects),
            "left_out": list(self.left_out),
            "voxels": self.voxels,
            "postprocess": self.postprocess,
            "seed": self.seed,
            "made_from": self.made_from,
            "thresholds": _by_text(self.thresholds),
            "intervals": _by_text(self.intervals),
            "scan_scores": {score: list(known) for score, known in self.scan_scores.items()},
            "looks": {} if self.appearance == HealthyAppearance() else self.appearance.to_dict(),
            "findings": {
                score: {f"{fraction:g}": healthy.to_dict() for fraction, healthy in known.items()}
                for score, known in self.findings.items()
            },
        }
        return {name: value for name, value in values.items() if value not in ("", [], {})}

    def threshold(self, score: str, fraction: float) -> float:
        """Return the map value that a fraction of healthy brain voxels exceeds.

        Between calibrated fractions the threshold is interpolated over their logarithms.

        Raises:
            InputError: The score was not calibrated, or the fraction lies outside the calibrated range.
        """
        return float(self._at(self._known(score, fraction), fraction))

    def interval(self, score: str, fraction: float) -> tuple[float, float] | None:
        """Return the 95 % interval of a threshold over scans, None where it is unknown.

        Raises:
            InputError: As `threshold`.
        """
        self._known(score, fraction)
        intervals = self.intervals.get(score)
        if intervals is None:
            return None
        low, high = self._at(intervals, fraction)
        return float(low), float(high)

    def healthy_findings(self, score: str, fraction: float) -> tuple[float, HealthyFindings] | None:
        """Return the findings of healthy scans, and the fraction they are for: ``fraction`` or the next larger one.

        The threshold for a larger fraction is lower, so healthy findings are as high and at least as large. A finding
        is therefore never counted as rarer than it is. None where the findings of the healthy scans are unknown.
        """
        known = self.findings.get(score, {})
        reached = [at for at in known if at >= fraction or math.isclose(at, fraction)]
        return (min(reached), known[min(reached)]) if reached else None

    def percentile(self, score: str, value: float) -> float | None:
        """Return the percentage of healthy scans with a lower scan score, 0 to 100; equal ones count half.

        None where the scores of the healthy scans are unknown.
        """
        known = self.scan_scores.get(score)
        if not known:
            return None
        scores = np.asarray(known)
        return float(100 * np.mean((scores < value) + 0.5 * (scores == value)))

    def _known(self, score: str, fraction: float) -> Mapping[float, Any]:
        thresholds = self.thresholds.get(score)
        if not thresholds:
            raise InputError("calibration", f"has no calibration for {score}", "Run `brainuad calibrate`")
        low, high = min(thresholds), max(thresholds)
        if not low <= fraction <= high:
            raise InputError("calibration", f"has no threshold for {fraction:g}", f"Choose {low:g} to {high:g}")
        return thresholds

    @staticmethod
    def _at(by_fraction: Mapping[float, Any], fraction: float) -> np.ndarray:
        fractions = sorted(by_fraction)
        values = np.array([by_fraction[known] for known in fractions], dtype=np.float64).reshape(len(fractions), -1)
        at = [np.interp(np.log(fraction), np.log(fractions), column) for column in values.T]
        return np.array(at).squeeze()


def _by_fraction(
    scores: Mapping[str, Any], read: Callable[[Mapping[str, Any], str], Any]
) -> dict[str, dict[float, Any]]:
    """Return a table by score and fraction, with its values converted by ``read``."""
    by_score: dict[str, dict[float, Any]] = {}
    for score in scores:
        of_score = table(scores, score)
        if not of_score:
            raise ValueError(f"has no threshold for {score}")
        by_score[score] = {_fraction(text): read(of_score, text) for text in of_score}
    return by_score


def _fraction(text: str) -> float:
    try:
        fraction = float(text)
    except ValueError:
        fraction = 0.0
    if not 0 < fraction < 1:
        raise ValueError(f"has {text!r} for a false-positive fraction")
    return fraction


def _ends(values: Mapping[str, Any], name: str) -> tuple[float, ...]:
    ends = numbers(values, name)
    if len(ends) != 2:
        raise ValueError(f"has {len(ends)} ends of an interval")
    return ends


def _by_text(scores: Table) -> dict[str, dict[str, Any]]:
    return {
        score: {
            f"{fraction:g}": list(value) if isinstance(value, tuple) else value for fraction, value in known.items()
        }
        for score, known in scores.items()
    }
