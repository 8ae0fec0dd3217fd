"""A tumour: necrotic core, solid rim, oedema along white matter, and displaced tissue around it."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from brainuad.simulate.deform import jacobian, push, warp
from brainuad.simulate.lesion import Layer, Lesion, cover, smooth_noise
from brainuad.simulate.tissue import Tissues

VOLUMES_ML = (5.0, 80.0)  # tumour and oedema together; drawn evenly on a logarithmic scale
MASS_SHARE = (0.25, 0.6)  # fraction of that volume that is tumour rather than oedema
PUSH = (0.25, 0.42)  # largest displacement as a fraction of the tumour's radius
MIN_CORE_RADIUS = 8.0  # mm; smaller tumours are solid
CORE, OEDEMA, RIM = 1, 2, 3  # labels of BraTS 2023
# Without contrast medium a high-grade glioma is grey to dark on T1 and uneven, its necrosis nearly as CSF, its oedema
# faint; on T2 all are bright, and on FLAIR, which suppresses free fluid, oedema most of all.
STRENGTH = {
    "t1": {"core": (0.55, 0.8), "rim": (0.25, 0.45), "oedema": (0.15, 0.3)},
    "t2": {"core": (0.6, 0.9), "rim": (0.25, 0.45), "oedema": (0.35, 0.6)},
    "flair": {"core": (0.3, 0.6), "rim": (0.25, 0.45), "oedema": (0.4, 0.7)},
}


def tumour(
    tissues: Tissues, rng: np.random.Generator, *, modality: str, contrast: float = 1.0, size: float = 1.0
) -> Lesion:
    """Draw one simulated tumour in the white matter of a cerebral lobe.

    ``contrast`` is a factor on the strength, ``size`` on the volume.
    """
    volume = float(np.exp(rng.uniform(*np.log(VOLUMES_ML)))) * size
    mass_ml = volume * rng.uniform(*MASS_SHARE)
    radius = (3000 * mass_ml / (4 * np.pi)) ** (1 / 3)  # mm
    strength = {
        name: float(np.clip(rng.uniform(*limits) * contrast, 0, 1)) for name, limits in STRENGTH[modality].items()
    }
    centre = _centre(tissues, rng, radius)
    share = rng.uniform(*PUSH)
    displacement = push(centre, radius, share, tissues.from_edge, tissues.spacing)
    level = _mass_level(tissues, rng, centre, radius)
    csf = warp(tissues.csf, displacement, order=1)
    free = (1 - csf) * (tissues.from_edge > 2)
    mass = cover(level) * free
    thickness = rng.uniform(3.0, 6.0) * np.exp(0.25 * smooth_noise(level.shape, rng, 6.0 / tissues.voxel_mm))
    core = cover(level - thickness) * free if radius > MIN_CORE_RADIUS else np.zeros_like(mass)
    white = warp(tissues.all_white, displacement, order=1)
    oedema, fading = _oedema(tissues, rng, white, mass, volume - mass_ml)
    layers = [
        Layer(oedema, np.clip(strength["oedema"] * fading, 0, 1), label=OEDEMA, mottle=0.1),
        Layer(mass, strength["rim"], replaces=True, label=RIM, mottle=0.2),
        Layer(core, strength["core"], replaces=True, label=CORE, mottle=0.12),
    ]
    moved_mm = np.sqrt(((displacement * np.reshape(tissues.spacing, (3, 1, 1, 1))) ** 2).sum(0))
    parameters = {
        "centre_voxel": centre.tolist(),
        "mass_ml": mass_ml,
        "wanted_ml": volume,
        "largest_displacement_mm": float(moved_mm.max()),
        "least_jacobian": float(jacobian(displacement).min()),
        **{f"{name}_strength": value for name, value in strength.items()},
    }
    return Lesion(layers, displacement, parameters)


def _centre(tissues: Tissues, rng: np.random.Generator, radius: float) -> np.ndarray:
    """Draw a voxel of a lobe's white matter where most of the tumour fits; for a large one, where it has most room."""
    room = np.minimum(tissues.from_edge - 4, tissues.from_ventricles + 0.4 * radius)
    values = room[tissues.white]
    enough = min(0.9 * radius, float(np.quantile(values, 0.9)))
    candidates = np.argwhere(tissues.white & (room >= enough))
    return candidates[rng.integers(len(candidates))]


def _mass_level(tissues: Tissues, rng: np.random.Generator, centre: np.ndarray, radius: float) -> np.ndarray:
    """Return the depth of each voxel inside a lumpy ellipsoid in mm, negative outside."""
    frame, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    axes = np.exp(rng.normal(0, 0.12, 3))
    axes /= np.prod(axes) ** (1 / 3)
    offsets = (np.indices(tissues.brain.shape).reshape(3, -1).T - centre) * tissues.spacing
    distance = np.sqrt((((offsets @ frame) / axes) ** 2).sum(1)).reshape(tissues.brain.shape)
    lumps = smooth_noise(tissues.brain.shape, rng, 0.35 * radius / tissues.voxel_mm)
    return radius * (1 + 0.14 * lumps) - distance


def _oedema(
    tissues: Tissues, rng: np.random.Generator, white: np.ndarray, mass: np.ndarray, volume_ml: float
) -> tuple[np.ndarray, np.ndarray]:
    """Spread oedema from the mass through white matter until it reaches its volume.

    Fast marching (Sethian 1996) with a speed that is high in white matter, low elsewhere in the brain and uneven.

    Returns:
        The coverage, and the strength (1 at the mass, 0.6 at the front); both ``(X, Y, Z)`` float32.
    """
    uneven = np.exp(0.4 * smooth_noise(white.shape, rng, 5.0 / tissues.voxel_mm))
    speed = np.where(tissues.brain, 0.04 + white**2, 0) * uneven
    seeds = np.argwhere((mass > 0.5) & (ndimage.minimum_filter(mass, 3) <= 0.5))
    march = sitk.FastMarchingImageFilter()
    # ITK's indices run x first, where its arrays have z first.
    march.SetTrialPoints([tuple(int(i) for i in reversed(seed)) for seed in seeds])
    march.SetStoppingValue(200.0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(speed, np.float32))
    arrival = np.minimum(sitk.GetArrayFromImage(march.Execute(image)), 200.0).astype(np.float32)
    share = white * (1 - mass)
    order = np.argsort(arrival, axis=None)
    reached = np.cumsum(share.ravel()[order]) * tissues.voxel_ml
    last = min(int(np.searchsorted(reached, volume_ml)), order.size - 1)
    front = min(max(float(arrival.ravel()[order[last]]), 1.0), 199.0)
    # Arrival times are distances in voxels of free white matter, and so is the distance from the front.
    coverage = np.clip(0.5 + front - arrival, 0, 1) * white
    return coverage.astype(np.float32), 1 - 0.4 * np.clip(arrival / front, 0, 1)
