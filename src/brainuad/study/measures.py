"""Measures of one case and score, in one space."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from brainuad.data.loading import NativeCase, PreparedCase
from brainuad.data.placement import back_to_scan
from brainuad.evaluation import (
    Confusion,
    Lesions,
    LesionSurface,
    ScoreHistogram,
    ThresholdCurve,
    curve_histogram,
    find_lesions,
    hausdorff,
    lesion_surface,
    match_components,
    reconstruction_errors,
    scan_score,
    slice_detection,
    slice_overlap,
    surface_distances,
    threshold_curve,
)
from brainuad.evaluation._arrays import bounding_box, ratio
from brainuad.scoring import large_components
from brainuad.study.protocol import ANY, MIN_VOXELS, MODEL, NATIVE, ORACLE, WITH_DISTANCES, Protocol, Thresholds

Measures = dict[str, dict[str, float]]  # threshold, measure, value


@dataclass(frozen=True, eq=False)
class Space:
    """A case on the grid that it is measured on.

    Attributes:
        name: "model" or "native".
        mask: ``(X, Y, Z)`` bool brain mask.
        lesion: ``(X, Y, Z)`` bool, or None without annotation.
        image: ``(X, Y, Z)``, to measure the contrast of lesions.
        spacing: Voxel size in mm along each axis.
        min_voxels: Components smaller than this are dropped from predictions.
        whole_grid: Count all voxels, not only those of the brain.
        bring: Function that resamples a map from the model's grid to this one.
    """

    name: str
    mask: np.ndarray
    lesion: np.ndarray | None
    image: np.ndarray
    spacing: tuple[float, float, float]
    min_voxels: int
    whole_grid: bool
    bring: Callable[[np.ndarray], np.ndarray]

    @cached_property
    def voxels(self) -> np.ndarray:
        """``(X, Y, Z)`` bool, the voxels that are counted.

        Lesion outside the brain mask counts, too: a lesion that the mask misses is missed by the method.
        """
        if self.whole_grid:
            return np.ones(self.mask.shape, dtype=bool)
        return self.mask if self.lesion is None else self.mask | self.lesion

    @cached_property
    def counted(self) -> int:
        """Number of voxels that are counted."""
        return int(np.count_nonzero(self.voxels))

    @cached_property
    def truth(self) -> np.ndarray:
        """``(X, Y, Z)`` bool, the lesion; all False without annotation."""
        return np.zeros_like(self.mask) if self.lesion is None else self.lesion

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in mL."""
        return float(np.prod(self.spacing)) / 1000

    @cached_property
    def lesions(self) -> Lesions:
        """The annotated lesions."""
        return find_lesions(self.truth, voxel_ml=self.voxel_ml, image=self.image, brain=self.mask)

    @cached_property
    def surface(self) -> LesionSurface | None:
        """The surface of the annotated lesions; None where there is none."""
        return lesion_surface(self.truth, self.spacing)

    def predict(self, above: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return `brainuad.scoring.large_components` of where a map on this grid is above a threshold."""
        return large_components(above & self.voxels, self.min_voxels)

    def confusion(self, labels: np.ndarray, sizes: np.ndarray) -> Confusion:
        """Return the confusion matrix in voxels of a prediction from `predict` and the annotation."""
        predicted, drawn = int(sizes.sum()), len(self.lesions.places)
        both = int(np.count_nonzero(labels.ravel()[self.lesions.places]))
        return Confusion(both, predicted - both, self.counted - predicted - drawn + both, drawn - both)


def model_space(prepared: PreparedCase, protocol: Protocol, spacing: float, *, cleaned: bool) -> Space:
    """Return a case's space on the model's grid; unless ``cleaned``, predictions keep their small components."""
    return Space(
        MODEL,
        prepared.mask,
        prepared.lesion,
        prepared.image,
        (spacing, spacing, spacing),
        MIN_VOXELS if cleaned else 1,
        protocol.whole_grid,
        lambda anomaly: anomaly,
    )


def native_space(prepared: PreparedCase, native: NativeCase, model: Space) -> Space:
    """Return a case's space on the grid of its image file, in canonical axes, with mask and lesion as in their files.

    The smallest component has the same volume as on the model's grid. Where only the brain counts, the grid is cropped
    to it.
    """
    image, brain, lesion = native.image, native.mask, native.lesion
    counted = np.ones_like(brain) if model.whole_grid else brain if lesion is None else brain | lesion
    box = bounding_box(counted)
    # copies, because views would keep the whole volumes in memory
    brain, values = brain[box].copy(), image.array[box].copy()
    x, y, z = (float(size) for size in image.spacing)
    smallest = max(1, round(model.min_voxels * model.voxel_ml / (x * y * z / 1000)))
    bring = partial(back_to_scan, grid_to_scan=prepared.affine, affine=image.affine, brain=brain, box=box)
    return Space(
        NATIVE,
        brain,
        None if lesion is None else lesion[box].copy(),
        values,
        (x, y, z),
        smallest if model.min_voxels > 1 else 1,
        model.whole_grid,
        bring,
    )


def case_facts(space: Space, reconstruction: np.ndarray | None) -> dict[str, float]:
    """Return a case's values that do not depend on the score: volumes, and errors of its reconstruction."""
    facts: dict[str, float] = {}
    if reconstruction is not None:
        errors = reconstruction_errors(
            space.image[space.voxels], reconstruction[space.voxels], space.truth[space.voxels]
        )
        facts = {f"reconstruction_{name}": value for name, value in errors.items()}
    facts["brain_ml"] = float(space.mask.sum()) * space.voxel_ml
    if space.lesion is not None:
        facts["lesion_ml"] = float(space.lesion.sum()) * space.voxel_ml
        facts["lesions"] = float(len(space.lesions))
    return facts


def measure(
    space: Space, anomaly: np.ndarray, protocol: Protocol, thresholds: Thresholds
) -> tuple[Measures, ScoreHistogram]:
    """Return the measures by threshold, and the counts for pooled measures, of a final map on the model's grid."""
    anomaly = space.bring(anomaly)
    named = dict(thresholds.named)
    found: Measures = {ANY: {}}
    if space.name == MODEL:
        found[ANY]["scan_score"] = scan_score(anomaly, space.mask)
    voxels = space.mask if space.lesion is None else space.voxels  # healthy scans always count the brain
    curve = threshold_curve(anomaly[voxels], space.truth[voxels])
    if space.lesion is not None:
        found[ANY] |= _over_all_thresholds(space, anomaly, curve, protocol)
        if not math.isnan(found[ANY]["best_threshold"]):
            named[ORACLE] = found[ANY].pop("best_threshold")
    for name, threshold in named.items():
        found[name] = {"threshold": threshold} | _at_threshold(space, anomaly, threshold, protocol, name)
    return found, curve_histogram(curve)


def _over_all_thresholds(
    space: Space, anomaly: np.ndarray, curve: ThresholdCurve, protocol: Protocol
) -> dict[str, float]:
    best = curve.best_dice()
    measures = {
        "auroc": curve.auroc(),
        "average_precision": curve.average_precision(),
        "chance": ratio(len(curve.lesion), len(curve.lesion) + len(curve.healthy)),
        "best_dice": best[0],
        "best_threshold": best[1],
    }
    if len(curve.lesion):
        measures["average_precision_ratio"] = measures["average_precision"] / measures["chance"]
    if space.name == MODEL:
        slices = slice_detection(anomaly, space.truth, space.mask, protocol.slice_axis)
        measures |= {f"slice_{name}": value for name, value in slices.items()}
    if protocol.greedy_threshold:
        measures["greedy_best_dice"], measures["greedy_best_threshold"] = curve.greedy_best_dice()
    return measures


def _at_threshold(
    space: Space, anomaly: np.ndarray, threshold: float, protocol: Protocol, name: str
) -> dict[str, float]:
    above = anomaly > threshold
    in_brain = int(np.count_nonzero(above & space.mask))
    measures = {"above": ratio(in_brain, int(np.count_nonzero(space.mask)))}
    components = space.predict(above)
    measures["predicted_ml"] = float(components[1].sum()) * space.voxel_ml
    if protocol.lesion_wise:
        measures |= _lesion_wise(space, *components)
    if space.lesion is None:
        return measures
    counts = space.confusion(*components)
    names: tuple[str, ...] = ("true_positives", "false_positives", "true_negatives", "false_negatives")
    measures |= {what: float(getattr(counts, what)) for what in ("dice", "precision", "recall", *names)}
    if space.name == MODEL:
        predicted = components[0] > 0
        slices = slice_overlap(predicted, space.truth, protocol.slice_axis)
        measures |= {f"slice_{what}": value for what, value in slices.items()}
        if protocol.discovery_as_positive_rate:
            names = ("specificity", "accuracy", "false_discovery_rate")
            measures |= {what: float(getattr(counts, what)) for what in names}
            measures["false_positive_rate"] = counts.false_discovery_rate
            measures["hausdorff_mm"] = hausdorff(predicted, space.truth) * space.spacing[0]
    if protocol.distances and name in WITH_DISTANCES:
        distances = surface_distances(components[0] > 0, space.surface)
        measures |= {"hd95_mm": distances.hd95, "assd_mm": distances.assd}
    return measures


def _lesion_wise(space: Space, labels: np.ndarray, voxels: np.ndarray) -> dict[str, float]:
    match = match_components(labels, voxels, space.lesions)
    counts = match.counts
    measures = {"false_positive_components": float(counts.false_positives)}
    if space.lesion is None:
        return measures
    measures |= {
        "lesion_sensitivity": counts.sensitivity,
        "lesion_precision": counts.precision,
        "lesion_f1": counts.f1,
        "lesions": float(counts.lesions),
        "lesions_found": float(counts.found),
        "components": float(counts.predicted),
        "components_confirmed": float(counts.confirmed),
    }
    for name, of_class in (match.by_size() | match.by_contrast()).items():
        if of_class.lesions:
            measures[f"lesions [{name}]"] = float(of_class.lesions)
            measures[f"lesions_found [{name}]"] = float(of_class.found)
        if of_class.predicted:
            measures[f"components [{name}]"] = float(of_class.predicted)
            measures[f"components_confirmed [{name}]"] = float(of_class.confirmed)
    return measures
