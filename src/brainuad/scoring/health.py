"""Scores relative to health at the same place: how many standard deviations a map lies above healthy scans there.

Grids of registered scans agree voxel by voxel, so healthy scans give every voxel of a map a mean and a spread. What is
always high in health (ventricles, the brain's rim, wherever the model reconstructs badly) is high no more. A score
``<name>_z`` is the map of score ``<name>``, less its healthy mean, in healthy standard deviations, and 0 where it is
below the mean; ``model_z`` is that of the model's own map, where it makes one. ``intensity_atlas`` is the same of the
image itself, in both directions: a baseline without a model. ``rarity`` sets maps of several scales against healthy
scans (`brainuad.scoring.rarity`).

`HealthyStatistics` learns from scans and can leave any of them out again; `HealthyMoments` is what a model carries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from brainuad.errors import InputError
from brainuad.files import atomic_path
from brainuad.moments import voxelwise_moments
from brainuad.scoring._arrays import as_mask, as_volume, keep_inside
from brainuad.scoring.names import IMAGE, INTENSITY_ATLAS, OWN_MAP, base_of, relative_name
from brainuad.scoring.rarity import FORMULA, TAIL, Ensemble, Part, rarity

# whose moments a calibrated model carries, those of them that it has
MOMENT_MAPS = ("l1", "l1_ssim", "second_l1_ssim", OWN_MAP, IMAGE)
Pair = tuple[Any, Any]  # map and mask


class HealthyStatistics:
    """Sums over healthy scans, from which mean and standard deviation at every voxel follow.

    They are sums so that any scan can be left out again: a healthy scan is never compared with itself.

    Attributes:
        count: ``(X, Y, Z)`` float32, scans with brain at each voxel.
        sums: By map, ``(X, Y, Z)`` float32 sum over scans.
        squares: By map, sum of squares.
        scans: Number of scans.
    """

    def __init__(self, names: Iterable[str], shape: tuple[int, ...]) -> None:
        self.count = np.zeros(shape, np.float32)
        self.sums = {name: np.zeros(shape, np.float32) for name in names}
        self.squares = {name: np.zeros(shape, np.float32) for name in self.sums}
        self.scans = 0
        self._known: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def add(self, maps: Mapping[str, Any], mask: Any) -> None:
        """Add a healthy scan: its maps before post-processing, ``(X, Y, Z)`` each, and its brain mask."""
        inside = as_mask(mask)
        self.count += inside
        self.scans += 1
        self._known.clear()
        for name in self.sums:
            values = _inside(maps[name], inside)
            self.sums[name] += values
            self.squares[name] += values**2

    def moments(self, name: str, without: Iterable[Pair] = ()) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation of a map over healthy scans, as `brainuad.moments` takes them.

        Args:
            name: The map.
            without: Maps and masks of scans that were added and are to be left out.

        Raises:
            ValueError: Fewer than two scans are left.
        """
        left_out = list(without)
        if self.scans - len(left_out) < 2:
            raise ValueError(f"{self.scans - len(left_out)} healthy scans give no standard deviation")
        if not left_out:
            if name not in self._known:
                self._known[name] = voxelwise_moments(self.count, self.sums[name], self.squares[name])
            return self._known[name]
        count, total, squares = self.count.copy(), self.sums[name].copy(), self.squares[name].copy()
        for map, mask in left_out:
            inside = as_mask(mask)
            values = _inside(map, inside)
            count -= inside
            total -= values
            squares -= values**2
        return voxelwise_moments(count, total, squares)

    def score(self, name: str, map: Any, mask: Any, without: Iterable[Pair] = ()) -> Tensor:
        """Return a map in standard deviations above health, 0 below the mean and outside the mask.

        Args:
            name: The score, "<name>_z" or "intensity_atlas".
            map: What ``base_of(name)`` says, ``(X, Y, Z)``, before post-processing.
            mask: Brain mask ``(X, Y, Z)``.
            without: As in `moments`.

        Raises:
            ValueError: As `moments`, or the shapes differ from the healthy scans'.
        """
        base = base_of(name)
        assert base is not None
        return _deviation(name, map, mask, self.moments(base, without))

    def carried(self) -> HealthyMoments:
        """Return the moments of every map over all scans.

        Raises:
            ValueError: There are fewer than two scans.
        """
        return HealthyMoments(self.scans, {name: self.moments(name) for name in self.sums})

    def save(self, path: str | Path, about: str = "") -> None:
        """Write a safetensors file; ``about`` is kept with it.

        Raises:
            InputError: It cannot be written.
        """
        arrays = {"count": self.count}
        for name in self.sums:
            arrays |= {f"sum {name}": self.sums[name], f"square {name}": self.squares[name]}
        with atomic_path(path) as temporary:
            temporary.write_bytes(save(arrays, {"scans": str(self.scans), "about": about}))

    @classmethod
    def load(cls, path: str | Path) -> tuple[HealthyStatistics, str]:
        """Return what `save` wrote, and its ``about``.

        Raises:
            InputError: The file is missing or damaged.
        """
        try:
            noted, arrays = _stored(path)
            sums = _behind("sum ", arrays)
            found = cls(sums, arrays["count"].shape)
            found.count, found.scans, found.sums = arrays["count"], int(noted["scans"]), sums
            found.squares = {name: arrays[f"square {name}"] for name in sums}
        except (OSError, SafetensorError, LookupError, TypeError, ValueError) as error:
            raise InputError(path, "holds no statistics of healthy scans", "Remove it") from error
        return found, noted["about"]


@dataclass(frozen=True, eq=False)
class HealthyMoments:
    """Mean and standard deviation of maps over healthy scans, at every voxel of a grid.

    Attributes:
        scans: Number of healthy scans.
        moments: By map, mean and standard deviation, ``(X, Y, Z)`` float32 each, as `HealthyStatistics.moments` gives.
        tails: By part of the score "rarity", ``(1001,)`` what healthy brains reach; empty where that was not measured.
    """

    scans: int
    moments: Mapping[str, tuple[np.ndarray, np.ndarray]]
    tails: Mapping[str, np.ndarray] = field(default_factory=dict)

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal hash: equal for moments that give equal scores."""
        digest = hashlib.sha256(FORMULA)
        known = {name: list(pair) for name, pair in self.moments.items()}
        for name, arrays in sorted((known | {f"tail {name}": [tail] for name, tail in self.tails.items()}).items()):
            digest.update(name.encode())
            for array in arrays:
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:32]

    def score(self, name: str, map: Any, mask: Any) -> Tensor:
        """Return a map in standard deviations above health, as `HealthyStatistics.score` does.

        Raises:
            InputError: The moments of this map are not there.
            ValueError: The shapes differ.
        """
        base = base_of(name)
        assert base is not None
        self.check(base)
        return _deviation(name, map, mask, self.moments[base])

    def has_rarity(self, parts: Iterable[Part]) -> bool:
        """Whether the score "rarity" of these parts can be computed."""
        return all(str(part) in self.tails for part in parts)

    def rarity(self, maps: Mapping[str, Any], mask: Any, ensemble: Ensemble) -> Tensor:
        """Return the map of rarity in healthy brains, fused over all scales: ``(X, Y, Z)`` from 0, cleaned.

        Args:
            maps: Those of ``bases_of("rarity", ensemble.parts)`` at least, ``(X, Y, Z)`` each, before post-processing.
            mask: ``(X, Y, Z)`` brain mask.
            ensemble: What is fused.

        Raises:
            InputError: The moments of a map are not there.
        """
        rarities = []
        for part in ensemble.parts:
            base = base_of(part.score)
            map = maps[part.score] if base is None else self.score(part.score, maps[base], mask)
            rarities.append(rarity(part.cleaned(map, mask), self.tails[str(part)]))
        return keep_inside(ensemble.fuse(rarities), mask)

    def check(self, base: str) -> None:
        """Check that the moments of a map are there.

        Raises:
            InputError: They are not.
        """
        if base not in self.moments:
            known = ", ".join(map(relative_name, self.moments))
            known = f"Choose one of {known}" if known else "It compares none voxel by voxel; choose rarity"
            raise InputError(relative_name(base), "is not among the scores that the model compares with health", known)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file: 16 bits where they are enough, and outside the healthy brains, where all voxels are
        alike, one value.

        Raises:
            InputError: It cannot be written.
        """
        first = next((pair[0] for pair in self.moments.values()), np.zeros((0, 0, 0)))
        alike = np.ones(first.shape, dtype=bool)
        for array in (array for pair in self.moments.values() for array in pair):
            alike &= array == array.flat[0]  # the grid's corner lies outside every brain
        arrays = {"brain": np.packbits(~alike), "shape": np.array(first.shape)}
        for name, pair in self.moments.items():
            for kind, array in zip(("mean", "sd"), pair, strict=True):
                values = np.append(array[~alike], array.flat[0])
                arrays[f"{kind} {name}"] = values.astype(np.float16 if _fit_16_bits(*pair) else np.float32)
        arrays |= {f"tail {name}": np.asarray(tail, dtype=np.float32) for name, tail in self.tails.items()}
        with atomic_path(path) as temporary:
            temporary.write_bytes(save(arrays, {"scans": str(self.scans)}))

    @classmethod
    def load(cls, path: str | Path) -> HealthyMoments:
        """Return what `save` wrote.

        Raises:
            InputError: The file is damaged.
        """
        try:
            noted, arrays = _stored(path)
            x, y, z = arrays["shape"].tolist()
            if len(arrays["brain"]) != -(-x * y * z // 8):
                raise ValueError("holds the bits of another grid")
            brain = np.unpackbits(arrays["brain"], count=x * y * z).astype(bool).reshape(x, y, z)
            moments = {}
            for name, values in _behind("mean ", arrays).items():
                mean, sd = _spread(values, brain), _spread(arrays[f"sd {name}"], brain)
                if not sd.min() > 0:
                    raise ValueError("holds a standard deviation that is not positive")
                moments[name] = mean, sd
            tails = _behind("tail ", arrays)
            if any(tail.shape != TAIL.shape or not (np.diff(tail) >= 0).all() for tail in tails.values()):
                raise ValueError("holds a tail that does not rise")
            return cls(int(noted["scans"]), moments, tails)
        except (OSError, SafetensorError, LookupError, TypeError, ValueError) as error:
            remedy = "Calibrate again, or remove it"
            raise InputError(path, "holds no moments of healthy scans", remedy) from error


def _stored(path: str | Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Return what is noted in a safetensors file, and its arrays by name."""
    with safe_open(path, "np") as stored:
        return stored.metadata(), {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118


def _behind(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays whose names begin with a prefix, by what stands behind it."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _fit_16_bits(mean: np.ndarray, sd: np.ndarray) -> bool:
    """Whether 16 bits have room for moments: a map may have any range, and hardly any spread."""
    limits = np.finfo(np.float16)
    return bool(sd.min() >= limits.tiny and max(sd.max(), np.abs(mean).max()) <= limits.max)


def _spread(values: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Lay the values of `HealthyMoments.save` out on the grid."""
    if not np.isfinite(values).all():
        raise ValueError("holds NaN or infinite values")
    full = np.full(brain.shape, values[-1], dtype=np.float32)
    full[brain] = values[:-1]
    return full


def _deviation(name: str, map: Any, mask: Any, moments: tuple[np.ndarray, np.ndarray]) -> Tensor:
    """Return how many healthy standard deviations a map lies above the healthy mean, or from it for the image."""
    values = as_volume(map, "map")
    if tuple(values.shape) != moments[0].shape:
        raise ValueError(f"map has shape {tuple(values.shape)}, the healthy scans {moments[0].shape}")
    mean, sd = (torch.from_numpy(array).to(values.device) for array in moments)
    z = (values - mean) / sd
    return keep_inside(z.abs() if name == INTENSITY_ATLAS else z.clamp(min=0), mask)


def _inside(map: Any, inside: np.ndarray) -> np.ndarray:
    values = as_volume(map, "map").cpu().numpy()
    return np.where(inside, values, np.float32(0)).astype(np.float32)
