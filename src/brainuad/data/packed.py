"""Prepared training scans as one small file, for a machine that has neither the data nor the time to prepare it.

The file is an ``.npz`` of 8-bit voxels, packed brain masks and a JSON header. Nothing in it is unpickled.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from brainuad._version import __version__
from brainuad.config import DataConfig
from brainuad.data.cohort import SPLITS
from brainuad.errors import InputError
from brainuad.files import atomic_path

FORMAT = 1
SUFFIX = ".npz"
# what the voxels depend on
SETTINGS = ("mode", "imageDim", "rescaleFactor", "affine", "smoothing_iterations")
_UNREADABLE = (OSError, ValueError, LookupError, TypeError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class PackedScan:
    """One scan of a packed cohort; its split is "train" or "val"."""

    subject: str
    dataset: str
    split: str


@dataclass(frozen=True, eq=False)
class PackedCohort:
    """Healthy scans on the model's grid, in 8 bits."""

    scans: tuple[PackedScan, ...]  # whose they are, in order
    images: np.ndarray  # (N, X, Y, Z) uint8
    masks: np.ndarray  # (N, X, Y, Z) bool brain masks
    steps: np.ndarray  # (N,) float32, what one grey level of each image is worth
    zeros: np.ndarray  # (N,) uint8, the grey level of each image that is 0
    settings: dict[str, Any]  # those of SETTINGS with which the scans were prepared
    fold: int  # of the splits
    version: str = __version__  # of the package that wrote it

    def pair(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return an image, ``(X, Y, Z)`` float32 in about [0, 1], and its mask."""
        levels = self.images[index].astype(np.float32) - np.float32(self.zeros[index])
        return levels * self.steps[index], self.masks[index]

    def split(self, name: str, most: int | None = None) -> list[int]:
        """Return which scans are in a split, in order; of each data set the first ``most``, if given."""
        of_set: dict[str, list[int]] = {}
        for index, scan in enumerate(self.scans):
            if scan.split == name:
                of_set.setdefault(scan.dataset, []).append(index)
        return sorted(index for indices in of_set.values() for index in indices[:most])

    def __str__(self) -> str:
        x, y, z = self.images.shape[1:]
        counts = f"{len(self.split('train'))} scans to train on and {len(self.split('val'))} to validate on"
        grid = f"{x} x {y} x {z} voxels of {self.settings['rescaleFactor']:g} mm"
        return f"{self.settings['mode']}, fold {self.fold}: {counts}, {grid}; brainuad {self.version}"


def is_packed(path: str | Path) -> bool:
    """Whether a path is, by its name, that of a packed cohort."""
    return Path(path).suffix.lower() == SUFFIX


def to_levels(image: np.ndarray) -> tuple[np.ndarray, np.float32, np.uint8]:
    """Round an image to 256 equidistant levels, one of which is exactly 0.

    Args:
        image: ``(X, Y, Z)`` of any range; resampling by B-splines leaves [0, 1] by some percent.

    Returns:
        The levels as uint8, the worth of one (at most 1/253 of the range, 0 counted in), and the level that is 0;
        ``(levels - zero) * step`` is off by half a step at most.
    """
    low, high = min(float(image.min()), 0.0), max(float(image.max()), 0.0)
    share = 255 * -low / (high - low) if high > low else 0.0
    # what is below 0 has to fit in the levels below it, what is above in those above
    sides = {zero: ((-low, zero), (high, 255 - zero)) for zero in (int(share), min(int(share) + 1, 255))}
    worth, zero = min((max(_ratio(size, levels) for size, levels in both), zero) for zero, both in sides.items())
    step = np.float32(worth) or np.float32(1)
    rounded = np.rint(image / np.float64(step)) + zero
    return np.clip(rounded, 0, 255).astype(np.uint8), step, np.uint8(zero)


def _ratio(size: float, levels: int) -> float:
    """Return the step between levels that divide a range."""
    return size / levels if levels else np.inf if size else 0.0


def pack_scans(
    scans: Sequence[PackedScan], volumes: Iterable[tuple[np.ndarray, np.ndarray]], config: DataConfig, fold: int
) -> PackedCohort:
    """Return scans in 8 bits; ``volumes`` are the image and brain mask of each, ``(X, Y, Z)`` on one grid."""
    levels, masks = [], []
    for image, mask in volumes:
        levels.append(to_levels(image))
        masks.append(np.asarray(mask, dtype=bool))
    images, steps, zeros = (np.stack(values) for values in zip(*levels, strict=True))
    settings = {name: getattr(config, name) for name in SETTINGS}
    return PackedCohort(tuple(scans), images, np.stack(masks), steps, zeros, settings, fold)


def write_packed(path: str | Path, cohort: PackedCohort) -> None:
    """Write a packed cohort, all or nothing."""
    header = {
        "format": FORMAT,
        "version": cohort.version,
        "fold": cohort.fold,
        "settings": cohort.settings,
        "scans": [asdict(scan) for scan in cohort.scans],
    }
    arrays = {
        "header": np.frombuffer(json.dumps(header).encode(), dtype=np.uint8),
        "images": cohort.images,
        "masks": np.packbits(cohort.masks),
        "steps": cohort.steps,
        "zeros": cohort.zeros,
    }
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, allow_pickle=False, **arrays)


def read_packed(path: str | Path) -> PackedCohort:
    """Read a packed cohort.

    Raises:
        InputError: The file is missing, damaged or something else, or was made by a newer version.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(path, "no such file", "Make it with `brainuad pack DATA -o FILE`")
    try:
        with np.load(path, allow_pickle=False) as stored:
            header = json.loads(stored["header"].tobytes())
            written = header["format"]
            if written == FORMAT:
                return _cohort(header, stored)
    except _UNREADABLE as error:
        remedy = "Copy it again, or make it anew with `brainuad pack`"
        raise InputError(path, "is damaged, or no packed training data of brainuad", remedy) from error
    raise InputError(path, f"has format {written!r}; this version reads {FORMAT}", "Update brainuad")


def _cohort(header: dict[str, Any], stored: Any) -> PackedCohort:
    scans = tuple(PackedScan(**scan) for scan in header["scans"])
    settings = {name: header["settings"][name] for name in SETTINGS}
    settings["imageDim"] = tuple(settings["imageDim"])
    images, steps, zeros = stored["images"], stored["steps"], stored["zeros"]
    masks = np.unpackbits(stored["masks"], count=images.size).astype(bool).reshape(images.shape)
    kinds = [array.dtype.str for array in (images, steps, zeros)]
    whole = (
        kinds == ["|u1", "<f4", "|u1"]
        and images.ndim == 4
        and len(images) == len(scans) > 0
        and steps.shape == zeros.shape == (len(scans),)
        and bool(np.isfinite(steps).all())
        and bool(masks.any(axis=(1, 2, 3)).all())
        and {scan.split for scan in scans} == set(SPLITS[:2])
    )
    if not whole:
        raise ValueError("its arrays do not belong together")
    return PackedCohort(scans, images, masks, steps, zeros, settings, int(header["fold"]), str(header["version"]))
