"""Strokes: outlines of real strokes, filled with CSF-like tissue, in real healthy scans.

The scan and the lesion's shape and position are real. Its intensities are drawn, and the tissue around it is not
displaced. An old stroke whose tissue has dissolved looks like this; a fresh one, or one with a gliotic rim, does not.
"""

from __future__ import annotations

import numpy as np

from brainuad.data.placement import resample
from brainuad.data.regions import SRI24_TO_MNI
from brainuad.data.volume import Volume
from brainuad.simulate.lesion import Layer, Lesion
from brainuad.simulate.tissue import Tissues

STRENGTH = (0.75, 1.0)  # fraction of the way to CSF: dissolved tissue, more or less
MIN_INSIDE = 0.5  # fraction of an outline's volume that must lie in this brain's tissue


def outline_coverage(outline: Volume, image: Volume, *, size: float = 1.0) -> np.ndarray:
    """Return the fraction of each voxel of ``image``, in atlas space, that an outline in MNI152 space covers.

    ``size`` is a factor on the volume of the outline, which grows or shrinks about its centre.
    """
    scale = np.eye(4)
    if size != 1:
        centre = (outline.affine @ [*np.argwhere(outline.inside).mean(0), 1])[:3]
        scale[:3, :3] /= size ** (1 / 3)
        scale[:3, 3] = centre - scale[:3, :3] @ centre
    matrix = np.linalg.inv(outline.affine) @ scale @ SRI24_TO_MNI @ image.affine
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
    """Lay a real outline in MNI152 space into a healthy scan in atlas space; CSF inside it does not count as lesion.

    ``contrast`` is a factor on the strength, ``size`` on the outline's volume. There is no lesion where too much of the
    outline lies outside this brain's tissue.
    """
    coverage = outline_coverage(outline, image, size=size) * tissues.parenchyma
    # The atlas is smaller than MNI152 space by the determinant of the map between them.
    expected = outline.inside.sum() * outline.voxel_ml * size
    expected /= np.linalg.det(SRI24_TO_MNI[:3, :3])
    if coverage.sum() * tissues.voxel_ml < MIN_INSIDE * expected:
        return None
    strength = float(np.clip(rng.uniform(*STRENGTH) * contrast, 0, 1))
    layer = Layer(coverage.astype(np.float32), strength, replaces=True, mottle=0.06)
    return Lesion([layer], None, {"strength": strength})
