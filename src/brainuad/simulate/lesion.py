"""Simulated lesions as layers of diseased tissue, and painting them into a scan."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import ndimage

from brainuad.simulate.deform import warp
from brainuad.simulate.tissue import Levels, Tissues

TEXTURE_VOXELS = 0.6  # blur of a lesion's texture in voxels, about that of a scan


@dataclass(frozen=True, eq=False)
class Layer:
    """One kind of diseased tissue."""

    coverage: np.ndarray  # (X, Y, Z) float32, the fraction of each voxel that it covers (partial volume)
    strength: float | np.ndarray  # its intensity between healthy tissue (0) and fluid (1), a number or (X, Y, Z)
    # whether it replaces the healthy tissue, so that its strength counts from white matter, or changes its intensity
    replaces: bool = False
    label: int = 1  # in the ground truth
    mottle: float = 0.0  # standard deviation of its texture, in units of strength


@dataclass(frozen=True, eq=False)
class Lesion:
    """A lesion, or all lesions of one kind in a scan."""

    layers: list[Layer]  # painted in this order, later ones over earlier ones
    # (3, X, Y, Z) in voxels: the tissue at x came from x - displacement; or None
    displacement: np.ndarray | None = None
    parameters: dict[str, Any] = field(default_factory=dict)  # all drawn values, for the sidecar

    def truth(self) -> np.ndarray:
        """Return the ground truth, ``(X, Y, Z)`` uint8: the largest layer's label in voxels at least half diseased."""
        remaining = np.ones(self.layers[0].coverage.shape, np.float32)
        shares = []
        for layer in reversed(self.layers):
            shares.append(remaining * layer.coverage)
            remaining = remaining * (1 - layer.coverage)
        labels = np.array([layer.label for layer in reversed(self.layers)], np.uint8)
        return np.where(remaining <= 0.5, labels[np.argmax(shares, axis=0)], 0).astype(np.uint8)


def paint(image: np.ndarray, lesion: Lesion, levels: Levels, brain: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Paint a lesion into a scan with the given tissue intensities.

    Diseased tissue lies between healthy tissue and fluid: darker on T1, brighter on T2 and FLAIR. Where it hides or
    weakens the scan's noise, as much noise is added.

    Args:
        image: ``(X, Y, Z)`` healthy scan with these ``levels``.
        brain: ``(X, Y, Z)`` bool; outside it nothing changes.
        rng: Source of the texture.

    Returns:
        ``(X, Y, Z)`` float32.
    """
    before = image if lesion.displacement is None else np.maximum(warp(image, lesion.displacement), 0)
    painted, kept = before.astype(np.float32), np.ones(image.shape, np.float32)
    for layer in lesion.layers:
        strength = layer.strength
        if layer.mottle:
            strength = np.clip(strength * (1 + layer.mottle * smooth_noise(image.shape, rng, 1.2)), 0, 1)
        healthy = levels.white if layer.replaces else painted
        diseased = healthy + strength * (levels.csf - healthy)
        painted = (1 - layer.coverage) * painted + layer.coverage * diseased
        kept = kept * (1 - layer.coverage * (1.0 if layer.replaces else strength))
    texture = levels.noise * smooth_noise(image.shape, rng, TEXTURE_VOXELS)
    painted = painted + np.sqrt(np.maximum(1 - kept**2, 0)) * texture
    return np.where(brain, np.maximum(painted, 0), image).astype(np.float32)


def smooth_noise(shape: tuple[int, ...], rng: np.random.Generator, blur: float) -> np.ndarray:
    """Return a Gaussian random field of mean 0 and standard deviation 1, white noise blurred by ``blur`` voxels."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), blur, mode="wrap")
    return (noise - noise.mean()) / noise.std()


def cover(level: np.ndarray) -> np.ndarray:
    """Return the fraction of each voxel that lies where ``level`` is positive, to first order, float32.

    The distance from the zero level, in voxels, is the level divided by its slope.
    """
    slope = np.sqrt(sum(np.square(part) for part in np.gradient(level)))
    return np.clip(0.5 + level / np.maximum(slope, 1e-3), 0, 1).astype(np.float32)


def above(level: np.ndarray, allowed: np.ndarray, volume_ml: float, tissues: Tissues) -> float:
    """Return the value that ``level`` exceeds in ``volume_ml`` of the ``allowed`` voxels (at most half of them)."""
    values = level[allowed]
    count = min(round(volume_ml / tissues.voxel_ml), values.size // 2)
    return float(np.partition(values, values.size - count - 1)[values.size - count - 1])
