"""How rare a value is in healthy brains, at several scales at once: no single scale suits every lesion.

A small lesion stands out from what healthy scans have *at its place*, and a wide filter would wipe it out. A large one
can be as bright as the brain around it; it stands out from the *whole* healthy brain by its structure, and a wide
filter takes away what healthy structure looks like. Each part of the ensemble is one such map. Its values are not
comparable with another's, but how often healthy brains exceed them is: a value that one healthy voxel in 1,000 reaches
has rarity 3 in every part.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from brainuad.scoring._arrays import as_volume
from brainuad.scoring.postprocess import postprocess, smoothed

RARITY = "rarity"  # the score
TAIL = 10.0 ** (-np.arange(1001) / 200)  # fractions of voxels, 1 to 0.00001
_BEND = 800  # in TAIL; the last tenth of the tail, from a few voxels, is one straight line
RAREST = 5.0  # the rarest that TAIL tells
FORMULA = b"logarithmic beyond 5"  # another where values change
TYPICAL = 0.5  # median rarity of a healthy brain, fused
_POWER = 3  # between the mean of the parts, 1, and their maximum, infinity


@dataclass(frozen=True)
class Part:
    """A score at a scale.

    Attributes:
        score: A score, or one relative to health.
        width: Standard deviation in voxels of the Gaussian that smooths its map.
    """

    score: str
    width: float

    def __str__(self) -> str:
        return f"{self.score} {self.width:g}"

    def cleaned(self, map: Any, mask: Any) -> Tensor:
        """Return the map ``(X, Y, Z)`` of its score without the brain's rim, smoothed."""
        return smoothed(map, mask, self.width)


@dataclass(frozen=True)
class Ensemble:
    """The maps that are fused, and what becomes of the fused map.

    Attributes:
        parts: The maps.
        power: Power of its own median by which the fused map is divided. Scans of a scanner that the calibration did
            not see are rarer in the whole brain, and so are those with a large tumour. The order of voxels stays
            (docs/decisions.md).
    """

    parts: tuple[Part, ...]
    power: float = 0.0

    def fuse(self, rarities: Iterable[Tensor]) -> Tensor:
        """Return the fused map of the parts' rarities, 0 outside the brain and on its rim."""
        stack = torch.stack(list(rarities))
        map = stack.pow(_POWER).mean(0).pow(1 / _POWER)  # near their maximum, with a say for the others
        inside = map[map > 0]
        return map * (TYPICAL / inside.median()).pow(self.power) if len(inside) else map


# By modality, chosen on validation scans, real ones first (docs/decisions.md). On T2 and FLAIR lesions are bright, and
# on FLAIR little else is.
ENSEMBLES = {
    "t1": Ensemble((Part("l1_ssim_z", 1), Part("ssim_1.7", 2), Part("features", 6)), power=0.5),
    "t2": Ensemble((Part("brighter_ssim", 1), Part("brighter", 6))),
    "flair": Ensemble((Part("intensity_bright", 1), Part("brighter_ssim", 1), Part("brighter", 6))),
}
# Of models that reconstruct in two ways: the diffusion model finds small lesions, the autoencoder larger ones.
OF_TWO = {
    "t1": Ensemble((Part("l1_ssim_z", 1), Part("second_l1_ssim_z", 2), Part("second_features", 6)), power=0.5),
    "t2": Ensemble((Part("brighter_ssim", 2), Part("second_brighter_ssim", 2), Part("second_brighter", 6))),
}


def tail_quantiles(values: Any) -> np.ndarray:
    """Return the smallest values that no more than the fractions ``TAIL`` of all values exceed.

    Args:
        values: Map values in one brain, any shape, not empty.

    Returns:
        ``(1001,)`` float32, ascending: 4 kB that stand for a scan. A fraction read from them lies between two
        neighbours in ``TAIL``, so it is at most 1.2 % of itself off (0.01 may be 0.00988 to 0.01012).
    """
    ordered = np.sort(np.asarray(values, dtype=np.float32), axis=None)
    allowed = np.floor(np.round(TAIL * ordered.size, 6)).astype(np.int64)
    return ordered[np.maximum(ordered.size - 1 - allowed, 0)]


def pooled_tail(tails: np.ndarray, voxels: Sequence[int]) -> np.ndarray:
    """Return about what `tail_quantiles` gives for the voxels of several scans together.

    Args:
        tails: ``(N, 1001)``, `tail_quantiles` of each scan.
        voxels: Voxels of each scan.

    Returns:
        ``(1001,)`` float32, ascending.
    """
    steps = np.unique(tails)
    above = np.average([np.interp(steps, tail, TAIL) for tail in tails], axis=0, weights=voxels)
    return np.interp(-TAIL, -above, steps).astype(np.float32)


def rarity(values: Tensor, tail: np.ndarray) -> Tensor:
    """Return minus the decimal logarithm of the fraction of healthy voxels that reach each value.

    Args:
        values: Map values, any shape.
        tail: ``(1001,)``, of healthy brains.

    Returns:
        As many numbers from 0: 0 for the lowest healthy value, 2 for one that one healthy voxel in 100 reaches. Beyond
        5, the rarest that the tail tells, its last slope goes on to a number s, and the result is 5 (1 + ln(s / 5)).
        So higher stays rarer, but that slope, which a few voxels decide, counts for little.
    """
    indices = np.append(np.arange(_BEND + 1), len(TAIL) - 1)
    known, first = np.unique(tail[indices], return_index=True)
    if len(known) < 2:
        return torch.zeros_like(values)
    heights = torch.from_numpy((indices[first] / 200).astype(np.float32)).to(values.device)
    levels = torch.from_numpy(known.astype(np.float32)).to(values.device)
    right = torch.searchsorted(levels, values.float().contiguous(), right=True).clamp(1, len(known) - 1)
    low, high = levels[right - 1], levels[right]
    weight = (values.float() - low) / (high - low)
    straight = (heights[right - 1] + weight * (heights[right] - heights[right - 1])).clamp(min=0)
    return torch.where(straight > RAREST, RAREST * (1 + (straight / RAREST).clamp(min=1).log()), straight)


def cleaned(name: str, map: Any, mask: Any) -> Tensor:
    """Return a score's map ready for a threshold: post-processed as published, but for rarity, whose parts are."""
    return as_volume(map, "map") if name == RARITY else postprocess(map, mask)
