"""The brain in a scan: its mask, and correction of the bias field inside it by N4."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from brainuad.data.registration import to_sitk, two_itk_threads
from brainuad.data.sampling import occupied_box
from brainuad.data.volume import Volume
from brainuad.errors import ScanFault

PUBLISHED_BIAS_LEVELS = 4
_BIAS_GRID, _BIAS_ITERATIONS = 6.0, 100  # mm, and at most a level
_PARCELLATION_CLOSING = 6.0  # mm: parcellations leave out the sulci, which brain extraction keeps
_LARGEST_BRAIN = 2300.0  # mL: above the largest of adults, below the head of a small child
_SMALLEST_BRAIN = 250.0  # mL: below a newborn's
_USUAL_BRAIN = (900.0, 2100.0)  # mL, adults
_CUT_AWAY = 0.15  # area of the brain on a face of the scan, as a fraction of its largest parallel section
_COARSE, _AROUND = 4.0, 20.0  # mm: where the head is looked for, and what is left around it
_AIR = 0.1  # of the brightest: what is darker is air
_MOSTLY = 0.3  # of the field of view: a box of less than that is taken in its place
_FEW_LEVELS = 32  # intensities in a brain; an 8-bit scan has some 200
_REPEATED = 0.3  # of the pairs of neighbouring slices: more do not agree by chance
_DARK = 0.03  # of the bright end of the whole scan: no tissue's median is below it


@dataclass(frozen=True, eq=False)
class Brain:
    """Where the brain is in a scan, and how that was found."""

    mask: np.ndarray  # (X, Y, Z) bool, sulci included
    source: str  # "given", "extracted" (the scan came without skull) or "deepbet"
    ml: float  # volume in mL
    warnings: list[str]  # what a person should look at

    @property
    def is_usual(self) -> bool:
        """Whether its volume is that of an adult's brain; a warning says so if not."""
        return _USUAL_BRAIN[0] <= self.ml <= _USUAL_BRAIN[1]


def find_brain(image: Volume, given: Volume | None = None, *, modality: str = "t1") -> Brain:
    """Find the brain: a given mask, else what is not background in an extracted scan, else deepbet's mask (of T1).

    The scan is 0 around the head or brain. The mask, or parcellation, lies on its grid and is above 0.5 in the brain.

    Raises:
        ValueError: The given mask is empty or lies outside what was measured; or no mask was given, the scan is
            not brain-extracted, and is not T1 or shows no brain.
    """
    if not np.ptp(image.array) > 0:
        raise ScanFault(f"holds one value only ({image.array.flat[0]:g})", "Convert the scan again")
    if given is not None:
        mask, source, says = given.inside, "given", "the brain mask holds"
        if not mask.any():
            raise ScanFault("the brain mask holds nothing above 0.5", "Give a mask that is above 0.5 in the brain")
        inside = image.array[mask]
        if not np.ptp(inside) > 0:
            raise ValueError(f"is constant inside the brain mask ({inside[0]:g})")
        if np.median(inside) < _DARK * np.percentile(image.array, 99.5):
            raise ValueError("is dark inside the brain mask: the mask lies beside the brain")
    elif (found := extracted_brain(image)) is not None:
        mask, source, says = found, "extracted", "what is not background holds"
    elif modality == "t1":
        mask, source, says = deepbet_mask(image), "deepbet", "brain extraction (deepbet) found"
    else:
        raise ValueError(f"is not brain-extracted, and brain extraction of {modality} needs a mask")
    closed = close_sulci(mask, image.spacing)
    ml = float(closed.sum() * image.voxel_ml)
    if not _SMALLEST_BRAIN < ml < _LARGEST_BRAIN:
        raise ValueError(f"shows no brain: {says} {ml:.0f} mL")
    return Brain(closed, source, ml, [*_mask_warnings(closed, ml), *_damage_warnings(image.array, closed)])


def extracted_brain(image: Volume) -> np.ndarray | None:
    """Return where a brain-extracted scan is not background, or None for a scan of a whole head.

    A head is larger than any brain, and cut off at the neck; noise outside the head fills the field of view.
    """
    # Interpolated images ring around zero: half a percent of the bright end tells tissue from ringing.
    tissue = image.array > 0.005 * np.percentile(image.array, 99.5)
    ml = tissue.sum() * image.voxel_ml
    return tissue if 0 < ml < _LARGEST_BRAIN and max(_sections_on_faces(tissue).values()) < 0.3 else None


def deepbet_mask(image: Volume) -> np.ndarray:
    """Return the brain mask of a T1 scan, ``(X, Y, Z)`` bool by deepbet (Fisch et al. 2024), which must find one."""
    network = copy(_deepbet())  # it keeps the bounding box of its scan: one for each, with the same weights
    mask = np.zeros(image.array.shape, dtype=bool)
    box = _without_air(image)
    try:
        mask[box] = network.postprocess(network.run_model(image.array[box].copy()) > 0.5)
        return mask
    except (AssertionError, ValueError) as error:  # its ways to say that its mask is empty
        raise ValueError("shows no brain: brain extraction (deepbet) found nothing") from error


def _without_air(image: Volume) -> tuple[slice, ...]:
    """Return the box of the head with a margin, where most of a scan is air around it; else all of the scan.

    deepbet looks for the brain in a copy of 128 voxels a side, in which such a head would be too small.
    """
    steps = [max(1, round(_COARSE / step)) for step in image.spacing]
    coarse = image.array[:: steps[0], :: steps[1], :: steps[2]]
    parts, count = ndimage.label(coarse > _AIR * np.percentile(coarse, 99.9))
    if not count:
        return (slice(None),) * 3
    largest = int(np.bincount(parts.ravel())[1:].argmax())
    found = ndimage.find_objects(parts)[largest]
    margins = [round(_AROUND / step) for step in image.spacing]
    box = tuple(
        slice(max(0, part.start * step - margin), min(length, part.stop * step + margin))
        for part, step, margin, length in zip(found, steps, margins, image.array.shape, strict=True)
    )
    return box if image.array[box].size < _MOSTLY * image.array.size else (slice(None),) * 3


@cache
def _deepbet() -> Any:
    from deepbet import BrainExtraction

    return BrainExtraction(no_gpu=True)  # the same mask on every machine


def close_sulci(mask: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """Return an ``(X, Y, Z)`` bool mask closed by a ball of 6 mm, its holes filled; ``spacing`` is in mm."""
    radius = [int(np.ceil(_PARCELLATION_CLOSING / step)) + 1 for step in spacing]
    box = occupied_box(mask)
    padded = np.pad(mask[box], [(r, r) for r in radius])
    closed = _far_from(_far_from(padded, spacing), spacing)
    inner = closed[tuple(slice(r, -r) for r in radius)]
    result = np.zeros_like(mask)
    result[box] = ndimage.binary_fill_holes(inner | mask[box])
    return result


def _far_from(mask: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """Whether each voxel is farther than the closing's distance from an ``(X, Y, Z)`` bool mask."""
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    image.SetSpacing(spacing[::-1])
    # Maurer's algorithm, 3 times as fast as SciPy's. Rounding must not tell voxels at that very distance apart.
    squared = sitk.SignedMaurerDistanceMap(image, squaredDistance=True, useImageSpacing=True)
    return sitk.GetArrayViewFromImage(squared) > _PARCELLATION_CLOSING**2 + 1e-3


def _mask_warnings(mask: np.ndarray, ml: float) -> list[str]:
    found = []
    low, high = _USUAL_BRAIN
    if not low <= ml <= high:
        found.append(f"brain volume {ml:.0f} mL is outside {low:.0f} to {high:.0f} mL: look at the mask")
    cut = [face for face, section in _sections_on_faces(mask).items() if section > _CUT_AWAY]
    if cut:
        found.append(f"the brain reaches the edge of the scan ({', '.join(cut)}): part of it may be missing")
    return found


def _damage_warnings(array: np.ndarray, mask: np.ndarray) -> list[str]:
    """Return warnings about slices that are empty or repeat their neighbours, and about few grey levels."""
    box = occupied_box(mask)
    image, brain = array[box], mask[box]
    found = []
    values = image[brain]
    if (levels := len(np.unique(values[:: 1 + len(values) // 20_000]))) < _FEW_LEVELS:
        found.append(f"the brain has {levels} grey levels only: maps show their steps")
    for axis, name in enumerate(("sagittal", "coronal", "axial")):
        slices, inside = np.moveaxis(image, axis, 0), np.moveaxis(brain, axis, 0)
        area = inside.sum((1, 2))
        large = area > area.max() / 4
        empty = int((large & ~(slices * inside).any((1, 2))).sum())
        if empty:
            found.append(f"{empty} {name} slices of the brain are empty: they count as anomalous")
        pairs = large[:-1] & large[1:]
        same = ((slices[:-1] == slices[1:]) | ~inside[:-1]).all((1, 2)) & pairs
        if same.sum() - max(empty - 1, 0) > _REPEATED * pairs.sum():
            found.append(f"{name} slices repeat their neighbours: they are thicker than the header says")
    return found


def _sections_on_faces(mask: np.ndarray) -> dict[str, float]:
    """Return the area of a mask on each face of its array, as a fraction of its largest section along that axis."""
    sections: dict[str, float] = {}
    for axis, ends in enumerate((("left", "right"), ("back", "front"), ("bottom", "top"))):
        areas = mask.sum(tuple({0, 1, 2} - {axis}))
        sections |= dict(zip(ends, (areas[[0, -1]] / max(areas.max(), 1)).tolist(), strict=True))
    return sections


def on_same_grid(label: Volume, image: Volume) -> bool:
    """Whether a label has its image's shape and place (to a hundredth of a millimetre)."""
    same_shape = label.array.shape == image.array.shape
    return same_shape and np.allclose(label.affine, image.affine, atol=1e-2)


def correct_bias(volume: Volume, mask: np.ndarray, levels: int = PUBLISHED_BIAS_LEVELS) -> np.ndarray:
    """Divide out the smooth multiplicative bias field inside the brain (N4, Tustison et al. 2010).

    The field is smooth, so it is estimated on a grid of about 6 mm and evaluated on the scan's own.

    Args:
        volume: Brain-extracted scan with positive intensities in the brain.
        mask: ``(X, Y, Z)`` bool brain mask.
        levels: Each halves the distance between the knots of the field, which begins as one cubic piece over the whole
            brain. With the four that were published it is some 2 cm, and a large lesion is taken for bias and
            flattened; with one it stays.

    Returns:
        ``(X, Y, Z)`` float32, corrected, zero outside the mask.

    Raises:
        ValueError: N4 fails, as it does where the brain is empty or only a few voxels.
    """
    # N4 works on logarithms: values at or below zero (cubic interpolation undershoots) would dominate the fit.
    positive = mask & (volume.array > 0)
    image = to_sitk(volume)
    inside = sitk.Cast(to_sitk(volume.with_array(positive)) > 0.5, sitk.sitkUInt8)
    shrink = [max(1, round(_BIAS_GRID / spacing)) for spacing in volume.spacing]
    correction = sitk.N4BiasFieldCorrectionImageFilter()
    correction.SetMaximumNumberOfIterations([_BIAS_ITERATIONS] * levels)
    correction.SetConvergenceThreshold(5e-4)
    try:
        with two_itk_threads():
            correction.Execute(sitk.Shrink(image, shrink), sitk.Shrink(inside, shrink))
        log_field = sitk.GetArrayFromImage(correction.GetLogBiasFieldAsImage(image)).transpose(2, 1, 0)
    except RuntimeError as error:
        raise ValueError("bias correction failed") from error
    return np.where(mask, volume.array / np.exp(log_field), 0).astype(np.float32)
