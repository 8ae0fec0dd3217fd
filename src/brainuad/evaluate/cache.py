"""Reconstructions on disk, so that a new score costs seconds: named by what they were made from, bounded in size."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from brainuad.data.loading import cache_folder
from brainuad.detector import Detector
from brainuad.errors import InputError
from brainuad.files import atomic_path

MAX_BYTES = 4_000_000_000
logger = logging.getLogger(__name__)


class Reconstructor:
    """Reconstructs images, each only once as long as it is in the cache.

    A reconstruction is found by the image's voxels, the detector's fingerprint (weights and settings, those of the
    noise among them), the kind of device, its precision, the seed and the number of draws. It is rounded to 16 bits
    whether it comes from the cache or not, so results do not depend on the cache. The entries used longest ago make
    room for new ones.

    Args:
        detector: The model.
        max_bytes: Size of the cache.
    """

    def __init__(self, detector: Detector, max_bytes: int = MAX_BYTES) -> None:
        self.detector = detector
        self.folder = cache_folder(detector.data_config) / "reconstructions"
        self.max_bytes = max_bytes
        self._detector_key = detector.result_key
        self._size: int | None = None  # of the folder, once it has been looked at
        self._writable = True

    def __call__(self, image: np.ndarray, seed: int, *, draws: int = 1) -> Tensor:
        """Return what :meth:`Detector.reconstruct` does, rounded to 16 bits, as float32.

        Raises:
            ValueError: The image is not (X, Y, Z), or the reconstruction holds NaN or infinite values.
        """
        entry = self.folder / f"{self._key(image, seed, draws)}.npy"
        shape = (draws, *image.shape)
        found = _read(entry, shape)
        if found is None:
            stack = self.detector.reconstruct(image, seed, draws=draws)
            found = stack.numpy().astype(np.float16)
            if not np.isfinite(found).all():
                raise ValueError("its reconstruction holds NaN or infinite values")
            self._write(entry, found)
        return torch.from_numpy(found.astype(np.float32))

    def _key(self, image: np.ndarray, seed: int, draws: int) -> str:
        about = f"{self._detector_key} {seed} {draws} {image.shape} {image.dtype} "
        return hashlib.sha256(about.encode() + np.ascontiguousarray(image).tobytes()).hexdigest()[:32]

    def _write(self, entry: Path, stack: np.ndarray) -> None:
        if not self._writable:
            return
        try:
            self._make_room(stack.nbytes)
            with atomic_path(entry) as temporary, temporary.open("wb") as handle:
                np.save(handle, stack, allow_pickle=False)
        except (InputError, OSError) as error:
            self._writable = False
            logger.warning("%s. Reconstructions are not kept", error)

    def _make_room(self, needed: int) -> None:
        """Remove the entries used longest ago until as much fits; other processes may do the same."""
        if self._size is not None and self._size + needed <= self.max_bytes:
            self._size += needed
            return
        entries = []
        with contextlib.suppress(FileNotFoundError):
            for item in os.scandir(self.folder):
                with contextlib.suppress(FileNotFoundError):
                    entries.append((item.stat().st_mtime, item.stat().st_size, item.path))
        size = sum(entry[1] for entry in entries)
        for _, length, path in sorted(entries):
            if size + needed <= self.max_bytes:
                break
            Path(path).unlink(missing_ok=True)
            size -= length
        self._size = size + needed


def _read(entry: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Read an entry and mark it as used; a damaged one counts as absent and is made again."""
    try:
        with entry.open("rb") as handle:
            stack: np.ndarray = np.load(handle, allow_pickle=False)
        os.utime(entry)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None
    if stack.dtype != np.float16 or stack.shape != shape or not np.isfinite(stack).all():
        return None
    return stack
