"""White-matter hyperintensities of vascular origin: caps on the ventricles' horns, bands along them, confluence."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from brainuad.simulate.lesion import Layer, Lesion, above, cover, smooth_noise
from brainuad.simulate.tissue import Tissues

# Volumes of confluent disease (Fazekas 2 to 3); healthy adults of this age have next to none.
MEDIAN_ML, SPREAD, VOLUMES_ML = 10.0, 0.7, (2.0, 45.0)
# On T1 between white and grey matter, not as dark as CSF (STRIVE, Wardlaw et al., Lancet Neurology 2013).
STRENGTH = {"t1": (0.25, 0.5), "t2": (0.35, 0.6), "flair": (0.35, 0.6)}
CAP_MM = 4.5  # extra reach of lesions from the tips of the horns, compared with the bodies
REACH_MM = 22.0  # greatest depth in white matter
U_FIBRES_MM = 3.0  # spared white matter under the cortex


def wmh(
    tissues: Tissues, rng: np.random.Generator, *, modality: str, contrast: float = 1.0, size: float = 1.0
) -> Lesion:
    """Draw one simulated patient's white-matter hyperintensities.

    A level falls with the distance from the lateral ventricles and is raised at their frontal and occipital tips.
    Smooth noise, partly equal on both sides, is added to it. The lesion is where the level exceeds a threshold, chosen
    for the drawn volume. Deep foci are where a second, finer noise is high. ``contrast`` is a factor on the strength,
    ``size`` on the volume.
    """
    volume = float(np.clip(rng.lognormal(np.log(MEDIAN_ML), SPREAD), *VOLUMES_ML)) * size
    strength = rng.uniform(*STRENGTH[modality]) * contrast
    coarse, fine = (_two_sided_noise(tissues, rng, mm / tissues.voxel_mm) for mm in (8.0, 3.5))
    level = CAP_MM * _tips(tissues) + 3.0 * coarse + 1.5 * fine - tissues.from_ventricles
    deep = 7.0 * _two_sided_noise(tissues, rng, 3.5 / tissues.voxel_mm) - 22.0
    thick = ndimage.binary_opening(tissues.all_white, iterations=2)  # no strands between the ventricles
    allowed = thick & tissues.white & (tissues.from_cortex > U_FIBRES_MM) & (tissues.from_ventricles < REACH_MM)
    level = np.where(tissues.from_cortex > U_FIBRES_MM + 2, np.maximum(level, deep), level)
    level = level - above(level, allowed, volume, tissues)
    coverage = cover(level) * allowed
    coverage = np.maximum(coverage, ndimage.gaussian_filter(coverage, 0.4)) * tissues.parenchyma
    severe = 0.75 + 0.25 * np.clip(level / 6.0, 0, 1)  # the middle is more damaged than the border
    layer = Layer(coverage, np.clip(strength * severe, 0, 1).astype(np.float32), mottle=0.12)
    return Lesion([layer], None, {"strength": strength, "wanted_ml": volume})


def _two_sided_noise(tissues: Tissues, rng: np.random.Generator, blur: float) -> np.ndarray:
    """Return a random field that is similar, but not equal, left and right."""
    one = smooth_noise(tissues.brain.shape, rng, blur)
    other = smooth_noise(tissues.brain.shape, rng, blur)
    return (one + one[::-1] + 1.4 * other) / np.sqrt(2 + 1.4**2)


def _tips(tissues: Tissues) -> np.ndarray:
    """Return 1 where the nearest part of a lateral ventricle is a frontal or occipital tip, 0 at its body."""
    nearest = ndimage.distance_transform_edt(
        ~tissues.ventricles, tissues.spacing, return_distances=False, return_indices=True
    )
    along = np.flatnonzero(tissues.ventricles.any((0, 2)))
    first, last = along.min(), along.max()
    place = np.abs(nearest[1] - (first + last) / 2) / max((last - first) / 2, 1)
    return np.clip((place - 0.5) / 0.4, 0, 1)
