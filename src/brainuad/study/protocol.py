"""The rules of an evaluation, and the names of its thresholds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from brainuad.evaluation import FALSE_POSITIVE_FRACTIONS
from brainuad.scoring.names import INTENSITY_ATLAS

BASELINES = ("random", "intensity_bright", "intensity_dark", INTENSITY_ATLAS)  # need no model
MIN_VOXELS = 8  # on the model's grid: smaller components are dropped from predictions
MODEL, NATIVE = "model", "native"  # spaces
ANY = ""  # the threshold of measures that need none
VALIDATION, ORACLE = "validation", "oracle"
# Fractions of healthy brain voxels at which the FROC curve has its points.
FROC_FRACTIONS = tuple(float(f"{10**-exponent:.2g}") for exponent in (0.5 + 0.25 * step for step in range(19)))


def healthy_name(fraction: float) -> str:
    """Return the name of the threshold that a given fraction of healthy brain voxels exceeds."""
    return f"healthy@{fraction:g}"


HEALTHY = tuple(healthy_name(fraction) for fraction in FALSE_POSITIVE_FRACTIONS)
THRESHOLD_MEANINGS = {
    **{
        healthy_name(fraction): f"{fraction:.1%} of healthy validation brain is higher: needs no annotation"
        for fraction in FALSE_POSITIVE_FRACTIONS
    },
    VALIDATION: "best pooled Dice on annotated validation scans of the set",
    ORACLE: "best Dice on the test scan itself: an upper bound, no result of a method",
}
WITH_DISTANCES = (healthy_name(0.01), VALIDATION, ORACLE)


@dataclass(frozen=True)
class Protocol:
    """The choices of an evaluation.

    Attributes:
        name: Name in the summary.
        whole_grid: Count all voxels of the padded grid, most of them background, instead of the brain's.
        greedy_threshold: Search the validation threshold by the release's bisection, which may miss the best.
        shared_noise: Repeat one noise field over all slices of a scan.
        slice_axis: Array axis of the slice-wise figures: 2 axial, as the model sees slices; 0 sagittal.
        discovery_as_positive_rate: Report FP / (FP + TP) under the name of the false-positive rate.
        native: Measure on the grid of the case's image file, too; linear interpolation resamples the map to it.
        lesion_wise: Count detected lesions and false positives, and draw FROC curves.
        distances: Measure surface distances.
    """

    name: str = "brainuad"
    whole_grid: bool = False
    greedy_threshold: bool = False
    shared_noise: bool = False
    slice_axis: int = 2
    discovery_as_positive_rate: bool = False
    native: bool = True
    lesion_wise: bool = True
    distances: bool = True


OURS = Protocol()
REFERENCE = Protocol(
    "reference",
    whole_grid=True,
    greedy_threshold=True,
    shared_noise=True,
    slice_axis=0,
    discovery_as_positive_rate=True,
    native=False,
)
QUICK = Protocol("quick", native=False, lesion_wise=False, distances=False)


@dataclass(frozen=True)
class Thresholds:
    """Thresholds of one score, all from validation scans.

    Attributes:
        named: Thresholds by name: those of ``HEALTHY``, and "validation"; some may be missing.
        froc: Points of the FROC curve, ascending; empty without healthy validation scans.
    """

    named: Mapping[str, float] = field(default_factory=dict)
    froc: tuple[float, ...] = ()
