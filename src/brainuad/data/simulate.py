"""Semi-synthetic strokes: outlines of real strokes, filled with CSF-like tissue, in real healthy T1 scans.

What this makes is called *semi-synthetic* wherever it is reported, and never pooled with real patients: the scan is
real, the shape and place of the lesion are real, but its contents are drawn and nothing around it is displaced. An old
stroke whose tissue has dissolved looks like this on T1; a fresh one, or one with a gliotic rim, does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from brainuad.data.frame import resample
from brainuad.data.volume import Volume

# Atlas mm to MNI152 mm: mean of the affine registrations to SRI24 of two brains that were given in MNI152 space.
ATLAS_TO_MNI = np.array(
    [
        [0.932, 0.011, -0.002, 110.65],
        [-0.004, 0.89, 0.108, -125.48],
        [0.003, -0.048, 0.903, -52.52],
        [0.0, 0.0, 0.0, 1.0],
    ]
)


@dataclass(frozen=True)
class Tissue:
    """Intensities of cerebrospinal fluid in one scan, in the scan's unit."""

    mean: float
    deviation: float


def csf_of(image: np.ndarray, mask: np.ndarray) -> Tissue:
    """Estimate a T1 scan's CSF from the darkest 0.5 to 2.5 % of the brain's inside (three voxels from its surface).

    Args:
        image: ``(X, Y, Z)`` bias-corrected T1 intensities.
        mask: ``(X, Y, Z)`` bool brain mask.

    Raises:
        ValueError: The mask has no inside.
    """
    inside = ndimage.binary_erosion(mask, iterations=3)
    if not inside.any():
        raise ValueError("the brain mask is too thin to find CSF in it")
    low, high = np.percentile(image[inside], (0.5, 2.5))
    values = image[inside & (image >= low) & (image <= high)]
    return Tissue(float(values.mean()), float(values.std()))


def stroke(image: Volume, mask: np.ndarray, outline: Volume, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Put one real stroke outline into a healthy scan that lies in atlas space.

    Border voxels are mixed by the fraction of them that the outline covers (partial volume). The filling is the scan's
    own CSF with smooth texture of the CSF's standard deviation.

    Args:
        image: Prepared healthy T1 scan, in atlas space.
        mask: Brain mask on the grid of ``image``, bool.
        outline: Stroke mask in MNI152 space (above 0 is stroke).
        seed: Seeds the texture.

    Returns:
        The image with the stroke, ``(X, Y, Z)`` float32, and the lesion, bool: voxels at least half covered.
    """
    matrix = np.linalg.inv(outline.affine) @ ATLAS_TO_MNI @ image.affine
    covered = resample((outline.array > 0).astype(np.float32), matrix, image.array.shape, order=1)
    covered = np.clip(covered, 0, 1) * mask
    csf = csf_of(image.array, mask)
    texture = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(mask.shape), 0.7)
    filling = csf.mean + csf.deviation * texture / texture.std()
    mixed = (1 - covered) * image.array + covered * np.maximum(filling, 0)
    return mixed.astype(np.float32), covered >= 0.5
