"""Strokes: outlines of real strokes, filled with CSF-like tissue, in real healthy scans.

The scan and the lesion's shape and position are real. Its intensities are drawn, and the tissue around it is not
displaced. An old stroke whose tissue has dissolved looks like this; a fresh one, or one with a gliotic rim, does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from brainuad.data.frame import resample
from brainuad.data.volume import Volume
from brainuad.simulate.lesion import Layer, Lesion
from brainuad.simulate.tissue import Tissues

# Atlas mm to MNI152 mm: mean of the affine registrations to SRI24 of two brains that were given in MNI152 space.
ATLAS_TO_MNI = np.array(
    [
        [0.932, 0.011, -0.002, 110.65],
        [-0.004, 0.89, 0.108, -125.48],
        [0.003, -0.048, 0.903, -52.52],
        [0.0, 0.0, 0.0, 1.0],
    ]
)
STRENGTH = (0.75, 1.0)  # fraction of the way to CSF: dissolved tissue, more or less
MIN_INSIDE = 0.5  # fraction of an outline's volume that must lie in this brain's tissue


@dataclass(frozen=True)
class Tissue:
    """Intensities of cerebrospinal fluid in one scan, in the scan's unit."""

    mean: float
    deviation: float


def csf_of(image: np.ndarray, mask: np.ndarray) -> Tissue:
    """Estimate a T1 scan's CSF from the darkest 0.5 to 2.5 % of the brain deeper than three voxels.

    Args:
        image: ``(X, Y, Z)`` bias-corrected T1 intensities.
        mask: ``(X, Y, Z)`` bool brain mask.

    Raises:
        ValueError: The mask is nowhere that deep.
    """
    inside = ndimage.binary_erosion(mask, iterations=3)
    if not inside.any():
        raise ValueError("the brain mask is too thin to find CSF in it")
    low, high = np.percentile(image[inside], (0.5, 2.5))
    values = image[inside & (image >= low) & (image <= high)]
    return Tissue(float(values.mean()), float(values.std()))


def stroke(image: Volume, mask: np.ndarray, outline: Volume, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Put one real stroke outline into a healthy scan that lies in atlas space.

    Border voxels are mixed by the fraction that the outline covers (partial volume). The filling has the scan's CSF
    intensity, with a smooth texture of the CSF's standard deviation.

    Args:
        image: Prepared healthy T1 scan, in atlas space.
        mask: Brain mask on the grid of ``image``, bool.
        outline: Stroke mask in MNI152 space (above 0.5 is stroke).
        seed: Seed of the texture.

    Returns:
        The image with the stroke, ``(X, Y, Z)`` float32, and the lesion, bool: voxels at least half covered.
    """
    covered = outline_coverage(outline, image) * mask
    csf = csf_of(image.array, mask)
    texture = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(mask.shape), 0.7)
    filling = csf.mean + csf.deviation * texture / texture.std()
    mixed = (1 - covered) * image.array + covered * np.maximum(filling, 0)
    return mixed.astype(np.float32), covered >= 0.5


def outline_coverage(outline: Volume, image: Volume, *, size: float = 1.0) -> np.ndarray:
    """Return the fraction of each voxel of ``image``, in atlas space, that an outline in MNI152 space covers.

    Args:
        outline: Above 0.5 is stroke.
        image: Its grid, ``(X, Y, Z)``, is used.
        size: Factor on the outline's volume; it grows or shrinks about its centre.
    """
    scale = np.eye(4)
    if size != 1:
        centre = (outline.affine @ [*np.argwhere(outline.inside).mean(0), 1])[:3]
        scale[:3, :3] /= size ** (1 / 3)
        scale[:3, 3] = centre - scale[:3, :3] @ centre
    matrix = np.linalg.inv(outline.affine) @ scale @ ATLAS_TO_MNI @ image.affine
    covered = resample(outline.inside.astype(np.float32), matrix, image.array.shape, order=1)
    return np.clip(covered, 0, 1)


def stroke_lesion(
    tissues: Tissues,
    rng: np.random.Generator,
    image: Volume,
    outline: Volume,
    *,
    contrast: float = 1.0,
    size: float = 1.0,
) -> Lesion | None:
    """Lay a real outline into a healthy brain; CSF inside the outline does not count as lesion.

    Args:
        tissues: Tissues of the healthy brain.
        rng: Source of the strength.
        image: Healthy scan in atlas space.
        outline: Stroke in MNI152 space, above 0.5.
        contrast: Factor on the strength.
        size: Factor on the outline's volume.

    Returns:
        The lesion, or None where too much of the outline lies outside this brain's tissue.
    """
    coverage = outline_coverage(outline, image, size=size) * tissues.parenchyma
    # The atlas is larger than MNI152 space by the determinant of the map between them.
    expected = outline.inside.sum() * outline.voxel_ml * size
    expected /= np.linalg.det(ATLAS_TO_MNI[:3, :3])
    if coverage.sum() * tissues.voxel_ml < MIN_INSIDE * expected:
        return None
    strength = float(np.clip(rng.uniform(*STRENGTH) * contrast, 0, 1))
    layer = Layer(coverage.astype(np.float32), strength, replaces=True, mottle=0.06)
    return Lesion([layer], None, {"strength": strength})
