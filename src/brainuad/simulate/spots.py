"""Multiple sclerosis: small ovoid lesions at the ventricles, under the cortex and in between."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from brainuad.simulate.lesion import Layer, Lesion, smooth_noise
from brainuad.simulate.tissue import Tissues

# Fractions and sizes after Pongratz et al. (NeuroImage Clinical 37:103311, 2023; 330 early patients): most lesions lie
# between ventricles and cortex (13 a patient), most of the volume at the ventricles (2.3 mL a patient).
SITES = {"periventricular": 0.35, "juxtacortical": 0.2, "subcortical": 0.45}
MEDIAN_DIAMETER = {"periventricular": 6.0, "juxtacortical": 4.5, "subcortical": 4.5}  # mm
DIAMETER_SPREAD = 0.3  # of the logarithm
DIAMETERS = (3.0, 10.0)  # mm; a lesion counts from 3 mm on (MAGNIMS, Filippi et al., Lancet Neurology 2016)
MEDIAN_COUNT, COUNT_SPREAD, COUNTS = 25, 0.5, (8, 70)
# Range of a case's mean strength, before partial volume takes a third of it. Measured in the consensus lesions of the
# two MSLUB patients, weighted by volume: T1 0.22 and 0.40, T2 0.32 and 0.43.
STRENGTH = {"t1": (0.3, 0.6), "t2": (0.4, 0.65), "flair": (0.4, 0.65)}


def ms(
    tissues: Tissues, rng: np.random.Generator, *, modality: str, contrast: float = 1.0, size: float = 1.0
) -> Lesion:
    """Draw the lesions of one simulated patient with multiple sclerosis.

    Periventricular lesions touch the ventricles and stand upright on them (Dawson's fingers). Juxtacortical ones touch
    the cortex and may enter it. Their outlines are slightly wavy ellipsoids. ``contrast`` is a factor on the strength,
    ``size`` on the volume of each lesion.
    """
    count = int(np.clip(np.rint(rng.lognormal(np.log(MEDIAN_COUNT), COUNT_SPREAD)), *COUNTS))
    mean = rng.uniform(*STRENGTH[modality])
    sites = rng.choice(list(SITES), size=count, p=list(SITES.values()))
    wave = smooth_noise(tissues.brain.shape, rng, 1.5)
    coverage = np.zeros(tissues.brain.shape, np.float32)
    strength = np.full(tissues.brain.shape, mean, np.float32)
    diameters = []
    for site in sites:
        drawn = rng.lognormal(np.log(MEDIAN_DIAMETER[site]), DIAMETER_SPREAD)
        diameter = float(np.clip(drawn, *DIAMETERS)) * size ** (1 / 3)
        diameters.append(round(diameter, 2))
        axes = diameter / 2 * _axes(rng, site)
        centre = _centre(tissues, rng, site, axes)
        box = tuple(
            slice(max(0, int(c - r) - 1), min(int(c + r) + 3, length))
            for c, r, length in zip(centre, 1.4 * axes.max() / np.array(tissues.spacing), wave.shape, strict=True)
        )
        one = _ellipsoid(centre, axes, _frame(tissues, rng, centre, site), box, tissues.spacing, wave)
        # A lesion's strength varies about the case's mean. Where two meet, the one that covers more of the voxel wins.
        own = np.clip(mean * rng.lognormal(0, 0.25), 0, 1)
        strength[box] = np.where(one > coverage[box], own, strength[box])
        coverage[box] = np.maximum(coverage[box], one)
    coverage *= tissues.parenchyma
    layer = Layer(coverage, np.clip(strength * contrast, 0, 1), mottle=0.1)
    named = {name: int((sites == name).sum()) for name in SITES}
    return Lesion([layer], None, {"mean_strength": mean * contrast, "sites": named, "diameters_mm": diameters})


def _axes(rng: np.random.Generator, site: str) -> np.ndarray:
    """Return the three half axes of an ellipsoid with the volume of a unit ball, the longest first."""
    long = rng.uniform(1.2, 1.8) if site == "periventricular" else rng.uniform(1.0, 1.3)
    lean = rng.uniform(0.85, 1.15)
    return np.array([long, lean / np.sqrt(long), 1 / (lean * np.sqrt(long))])


def _centre(tissues: Tissues, rng: np.random.Generator, site: str, axes: np.ndarray) -> np.ndarray:
    """Draw a lesion's centre in voxels, which may be fractional."""
    if site == "periventricular":
        places = tissues.all_white & (tissues.from_ventricles < axes[0] + 1.5)
    elif site == "juxtacortical":
        places = tissues.white & (tissues.from_cortex < axes[1] + 1) & (tissues.from_ventricles > 10)
    else:
        places = tissues.white & (tissues.from_cortex > axes[0] + 1) & (tissues.from_ventricles > axes[0] + 3)
    candidates = np.flatnonzero(places if places.any() else tissues.all_white)
    index = np.unravel_index(candidates[rng.integers(candidates.size)], places.shape)
    return np.array(index) + rng.uniform(-0.5, 0.5, 3)


def _frame(tissues: Tissues, rng: np.random.Generator, centre: np.ndarray, site: str) -> np.ndarray:
    """Return three orthogonal directions as columns, the long axis first; at a ventricle it points away from it."""
    frame, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    if site == "periventricular":
        x, y, z = np.clip(np.rint(centre).astype(int), 1, np.array(tissues.brain.shape) - 2)
        near = tissues.from_ventricles[x - 1 : x + 2, y - 1 : y + 2, z - 1 : z + 2]
        away = np.array([g[1, 1, 1] for g in np.gradient(near)]) / tissues.spacing
        if np.linalg.norm(away) > 0:
            frame, _ = np.linalg.qr(np.column_stack([away, frame[:, :2]]))
    return frame


def _ellipsoid(
    centre: np.ndarray,
    axes: np.ndarray,
    frame: np.ndarray,
    box: tuple[slice, ...],
    spacing: tuple[float, float, float],
    wave: np.ndarray,
) -> np.ndarray:
    """Return the coverage of the voxels of a box by a wavy ellipsoid: the mean over 3 x 3 x 3 points in each."""
    radius = 1 + 0.12 * ndimage.zoom(wave[box], 3, order=1, mode="nearest", grid_mode=True)
    points = [(np.arange(3 * part.start, 3 * part.stop) - 1) / 3 - c for part, c in zip(box, centre, strict=True)]
    offsets = np.stack(np.meshgrid(*points, indexing="ij"), -1) * spacing
    inside = ((offsets @ frame / axes) ** 2).sum(-1) < radius**2
    x, y, z = (size // 3 for size in inside.shape)
    return inside.reshape(x, 3, y, 3, z, 3).mean((1, 3, 5)).astype(np.float32)
