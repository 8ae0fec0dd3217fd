"""Reconstructions on disk, so that a new score costs seconds: named by what they were made from, bounded in size."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from brainuad.cache import Cache
from brainuad.data.loading import cache_folder
from brainuad.detector import Detector

MAX_BYTES = 4_000_000_000


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
        folder = cache_folder(detector.data_config) / "reconstructions"
        self.cache = Cache(folder, max_bytes, "Reconstructions are not kept")
        self._detector_key = detector.result_key

    def __call__(self, image: np.ndarray, seed: int, *, draws: int = 1) -> Tensor:
        """Return what :meth:`Detector.reconstruct` does, rounded to 16 bits, as float32.

        Raises:
            ValueError: The image is not (X, Y, Z), or the reconstruction holds NaN or infinite values.
        """
        name = f"{self._key(image, seed, draws)}.npy"
        found = self.cache.read(name, lambda handle: np.load(handle, allow_pickle=False))
        if found is None or not _is_usable(found, (draws, *image.shape)):
            stack = self.detector.reconstruct(image, seed, draws=draws)
            found = stack.numpy().astype(np.float16)
            if not np.isfinite(found).all():
                raise ValueError("its reconstruction holds NaN or infinite values")
            kept = found
            self.cache.write(name, kept.nbytes, lambda handle: np.save(handle, kept, allow_pickle=False))
        return torch.from_numpy(found.astype(np.float32))

    def _key(self, image: np.ndarray, seed: int, draws: int) -> str:
        about = f"{self._detector_key} {seed} {draws} {image.shape} {image.dtype} "
        return hashlib.sha256(about.encode() + np.ascontiguousarray(image).tobytes()).hexdigest()[:32]


def _is_usable(stack: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether an entry holds reconstructions of that shape."""
    return stack.dtype == np.float16 and stack.shape == shape and bool(np.isfinite(stack).all())
