"""Lesion-wise detection: which drawn lesions are found, and which predicted components lie on none.

A lesion is a 26-connected component of the drawn mask, a prediction one of the thresholded map. The rule of overlap
is the first condition of the MSSEG challenge (Commowick et al., "Objective evaluation of multiple sclerosis lesion
segmentation", Scientific Reports 8, 13650, 2018, alpha = 10 %), applied both ways as there: a lesion is *found* if
at least a tenth of its voxels are predicted, by whichever components; a predicted component is *confirmed* if at
least a tenth of its voxels are lesion, and is a false positive otherwise. So calling the whole brain lesion finds
every lesion and has no precision. (MSSEG's second condition, on how far a component reaches beyond the lesion, is
left to the precision.) With ``min_overlap=0`` one common voxel is enough, the rule of ISLES 2022.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy import ndimage

from brainuad.components import components
from brainuad.evaluation._arrays import as_array, as_bool, ratio

MIN_OVERLAP = 0.1
SIZE_EDGES_ML = (0.1, 1.0, 10.0)
SIZE_CLASSES = ("< 0.1 mL", "0.1-1 mL", "1-10 mL", "> 10 mL")
CONTRAST_EDGES_SD = (0.5, 1.0, 2.0)
CONTRAST_CLASSES = ("< 0.5 SD", "0.5-1 SD", "1-2 SD", "> 2 SD")
SHELL_VOXELS = (1, 3)  # the tissue around a lesion: beyond the first voxel, which it shares, up to the third


@dataclass(frozen=True, eq=False)
class Lesions:
    """The drawn lesions of one scan, found once and matched with any number of predictions.

    Attributes:
        labels: ``(X, Y, Z)`` integers, 0 where there is no lesion, else the lesion's number from 1.
        voxels: ``(n,)`` size of each lesion in voxels.
        contrast: ``(n,)`` mean of the image in the lesion minus its mean in the tissue around, in standard
            deviations of the brain without lesions; NaN without an image or without such tissue.
        voxel_ml: Volume of a voxel in mL.
    """

    labels: np.ndarray
    voxels: np.ndarray
    contrast: np.ndarray
    voxel_ml: float

    def __len__(self) -> int:
        """Return the number of lesions."""
        return len(self.voxels)

    @cached_property
    def places(self) -> np.ndarray:
        """``(v,)`` where the lesions' voxels lie in the flattened ``labels``, ascending."""
        return np.flatnonzero(self.labels)

    @cached_property
    def numbers(self) -> np.ndarray:
        """``(v,)`` number of the lesion that each of ``places`` belongs to."""
        return self.labels.ravel()[self.places]

    @property
    def volume_ml(self) -> np.ndarray:
        """``(n,)`` volume of each lesion in mL."""
        return self.voxels * self.voxel_ml


@dataclass(frozen=True)
class LesionCounts:
    """Lesions and predicted components, counted; counts of several scans may be added.

    Attributes:
        lesions: Drawn lesions.
        found: How many of them are found.
        predicted: Predicted components.
        confirmed: How many of them lie on a lesion.
    """

    lesions: int = 0
    found: int = 0
    predicted: int = 0
    confirmed: int = 0

    def __add__(self, other: LesionCounts) -> LesionCounts:
        """Return the counts of both."""
        return LesionCounts(
            self.lesions + other.lesions,
            self.found + other.found,
            self.predicted + other.predicted,
            self.confirmed + other.confirmed,
        )

    @property
    def sensitivity(self) -> float:
        """Share of lesions that are found; NaN without lesions."""
        return ratio(self.found, self.lesions)

    @property
    def precision(self) -> float:
        """Share of predicted components that are confirmed; NaN without predictions."""
        return ratio(self.confirmed, self.predicted)

    @property
    def f1(self) -> float:
        """Harmonic mean of sensitivity and precision.

        NaN where there is neither lesion nor prediction; 0 where one of the two is missing.
        """
        if self.lesions + self.predicted == 0:
            return math.nan
        if self.found == 0 or self.confirmed == 0:
            return 0.0
        return 2 / (1 / self.sensitivity + 1 / self.precision)

    @property
    def false_positives(self) -> int:
        """Predicted components that lie on no lesion."""
        return self.predicted - self.confirmed


@dataclass(frozen=True, eq=False)
class LesionMatch:
    """One prediction against the lesions of its scan.

    Attributes:
        lesions: The lesions.
        overlap: ``(n,)`` share of each lesion's voxels that is predicted.
        found: ``(n,)`` bool.
        predicted_ml: ``(m,)`` volume of each predicted component in mL.
        confirmed: ``(m,)`` bool.
    """

    lesions: Lesions
    overlap: np.ndarray
    found: np.ndarray
    predicted_ml: np.ndarray
    confirmed: np.ndarray

    @property
    def counts(self) -> LesionCounts:
        """All lesions and predicted components, counted."""
        return self._count(slice(None), slice(None))

    def by_size(self) -> dict[str, LesionCounts]:
        """Return the counts by volume, of lesions and of predicted components each by its own."""
        lesions, predicted = size_class(self.lesions.volume_ml), size_class(self.predicted_ml)
        return {name: self._count(lesions == i, predicted == i) for i, name in enumerate(SIZE_CLASSES)}

    def by_contrast(self) -> dict[str, LesionCounts]:
        """Return the counts of lesions by size of their contrast, bright or dark; predictions have none."""
        classes = contrast_class(self.lesions.contrast)
        nothing = np.zeros(len(self.confirmed), dtype=bool)
        return {name: self._count(classes == i, nothing) for i, name in enumerate(CONTRAST_CLASSES)}

    def records(self) -> list[dict[str, Any]]:
        """Return a row a lesion: ``lesion`` (number), ``volume_ml``, ``contrast``, ``overlap``, ``found``."""
        columns = (self.lesions.volume_ml, self.lesions.contrast, self.overlap, self.found)
        names = ("volume_ml", "contrast", "overlap", "found")
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [{"lesion": i, **dict(zip(names, row, strict=True))} for i, row in enumerate(rows, start=1)]

    def _count(self, lesions: Any, predicted: Any) -> LesionCounts:
        found, confirmed = self.found[lesions], self.confirmed[predicted]
        return LesionCounts(len(found), int(found.sum()), len(confirmed), int(confirmed.sum()))


def size_class(volume_ml: Any) -> np.ndarray:
    """Return the index in ``SIZE_CLASSES`` of each volume in mL; a volume on an edge belongs to the larger."""
    return np.digitize(volume_ml, SIZE_EDGES_ML)


def contrast_class(contrast: Any) -> np.ndarray:
    """Return the index in ``CONTRAST_CLASSES`` of the size of each contrast, -1 where it is NaN."""
    classes = np.digitize(np.abs(contrast), CONTRAST_EDGES_SD)
    return np.where(np.isnan(contrast), -1, classes)


def find_lesions(lesion: Any, *, voxel_ml: float, image: Any = None, brain: Any = None) -> Lesions:
    """Return the lesions of a scan: the 26-connected components of the drawn mask.

    Args:
        lesion: True in the lesions, (X, Y, Z); tensor or array. May be empty.
        voxel_ml: Volume of a voxel in mL.
        image: The scan (X, Y, Z), for the lesions' contrast; the tissue around a lesion is the brain two and three
            voxels from it (26-neighbourhood), where there is no other lesion.
        brain: Brain mask (X, Y, Z), needed with an image.

    Raises:
        ValueError: The shapes differ, or there is an image without a brain mask.
    """
    truth = as_bool(lesion, "lesion")
    labels, count = components(truth)
    voxels = np.bincount(labels[truth], minlength=count + 1)[1:]
    contrast = np.full(count, math.nan)
    if image is not None:
        if brain is None:
            raise ValueError("the contrast of lesions needs the brain mask")
        values = as_array(image)
        if values.shape != truth.shape:
            raise ValueError(f"image has shape {values.shape}, lesion {truth.shape}")
        if count:
            contrast = _contrast(labels, values, as_bool(brain, "brain", truth.shape))
    return Lesions(labels, voxels, contrast, voxel_ml)


def match_lesions(
    prediction: Any, lesions: Lesions, *, min_overlap: float = MIN_OVERLAP, min_voxels: int = 1
) -> LesionMatch:
    """Return which lesions a prediction finds, and which of its components lie on a lesion.

    Args:
        prediction: True where the method sees a lesion, (X, Y, Z); tensor or array.
        lesions: The drawn lesions, from `find_lesions`.
        min_overlap: Share of a lesion that must be predicted for it to be found, and share of a component that
            must be lesion for it to be confirmed, from 0 to 1; one voxel at least.
        min_voxels: Predicted components smaller than this are dropped first.

    Raises:
        ValueError: The shapes differ or ``min_overlap`` is out of range.

    Examples:
        >>> lesion = np.zeros((8, 8, 8), dtype=bool)
        >>> lesion[1:3, 1:3, 1:3] = lesion[5:7, 5:7, 5:7] = True  # two lesions
        >>> prediction = np.zeros_like(lesion)
        >>> prediction[1, 1:3, 1:3] = prediction[0, 7, 7] = True  # half of one lesion, and a false positive
        >>> match = match_lesions(prediction, find_lesions(lesion, voxel_ml=0.008))
        >>> match.counts
        LesionCounts(lesions=2, found=1, predicted=2, confirmed=1)
        >>> match.counts.sensitivity, match.counts.precision, match.counts.f1
        (0.5, 0.5, 0.5)
        >>> match.records()[0]
        {'lesion': 1, 'volume_ml': 0.064, 'contrast': nan, 'overlap': 0.5, 'found': True}
    """
    called = as_bool(prediction, "prediction", lesions.labels.shape)
    labels, count = components(called)
    sizes = np.bincount(labels[called], minlength=count + 1)[1:]
    return match_components(labels, np.where(sizes >= min_voxels, sizes, 0), lesions, min_overlap=min_overlap)


def match_components(
    labels: np.ndarray, voxels: np.ndarray, lesions: Lesions, *, min_overlap: float = MIN_OVERLAP
) -> LesionMatch:
    """Return what `match_lesions` does, of a prediction whose components are known.

    Args:
        labels: ``(X, Y, Z)`` integers, 0 where nothing is predicted, else the component's number from 1.
        voxels: ``(m,)`` size of each component in voxels; those of size 0 are left out.
        lesions: The drawn lesions, from `find_lesions`.
        min_overlap: As in `match_lesions`.

    Raises:
        ValueError: The shapes differ or ``min_overlap`` is out of range.
    """
    if not 0 <= min_overlap <= 1:
        raise ValueError(f"min_overlap must lie between 0 and 1, got {min_overlap}")
    if labels.shape != lesions.labels.shape:
        raise ValueError(f"prediction has shape {labels.shape}, expected {lesions.labels.shape}")
    kept = voxels > 0
    component = labels.ravel()[lesions.places]  # 0 where a lesion is not predicted
    covers = np.concatenate([[False], kept])[component]
    covered = np.bincount(lesions.numbers[covers], minlength=len(lesions) + 1)[1:]
    inside = np.bincount(component, minlength=len(voxels) + 1)[1:]
    return LesionMatch(
        lesions,
        covered / lesions.voxels,
        _enough(covered, lesions.voxels, min_overlap),
        voxels[kept] * lesions.voxel_ml,
        _enough(inside[kept], voxels[kept], min_overlap),
    )


def _enough(common: np.ndarray, voxels: np.ndarray, min_overlap: float) -> np.ndarray:
    # Rounded, so that a tenth of 30 voxels is 3 where the product is a hair more.
    return common >= np.maximum(np.round(min_overlap * voxels, 6), 1)


def _contrast(labels: np.ndarray, image: np.ndarray, brain: np.ndarray) -> np.ndarray:
    healthy = brain & (labels == 0)
    spread = float(image[healthy].std(dtype=np.float64)) if healthy.any() else 0.0
    contrast = np.full(int(labels.max()), math.nan)
    if spread == 0:
        return contrast
    inner, outer = SHELL_VOXELS
    grow: Callable[..., np.ndarray] = ndimage.binary_dilation
    cube = np.ones((3, 3, 3), dtype=bool)
    for index, box in enumerate(ndimage.find_objects(labels)):
        near = tuple(slice(max(part.start - outer, 0), part.stop + outer) for part in box)
        inside = labels[near] == index + 1
        shell = grow(inside, cube, outer) & ~grow(inside, cube, inner) & healthy[near]
        if shell.any():
            values = image[near]
            difference = values[inside].mean(dtype=np.float64) - values[shell].mean(dtype=np.float64)
            contrast[index] = difference / spread
    return contrast
