"""Reconstructions on disk, so that a new score costs seconds: named by what they were made from, bounded in size."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from brainuad.cache import Cache
from brainuad.data.loading import cache_folder
from brainuad.detector import Detector
from brainuad.models.base import Inference

MAX_BYTES = 4_000_000_000


class Reconstructor:
    """Has a model look at images, each only once as long as what it made is in the cache.

    A reconstruction is found by the image's voxels, the detector's fingerprint (weights and settings, those of the
    noise among them), the kind of device, its precision, the seed and the number of draws; a model's own map by the
    brain mask too. A reconstruction is rounded to 16 bits whether it comes from the cache or not, so results do not
    depend on the cache. The entries used longest ago make room for new ones.

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
            InputError: The model does not reconstruct.
            ValueError: The image is not (X, Y, Z), or the reconstruction holds NaN or infinite values.
        """
        stack = self.infer(image, None, seed, draws=draws).reconstruction
        return (
            self.detector.reconstruct(image, seed, draws=draws) if stack is None else stack
        )  # which says why not

    def infer(self, image: np.ndarray, mask: np.ndarray | None, seed: int, *, draws: int = 1) -> Inference:
        """Return what :meth:`Detector.infer` does, reconstructions rounded to 16 bits, as float32.

        Raises:
            ValueError: The image is not (X, Y, Z), or what the model makes of it holds NaN or infinite values.
        """
        model, about = self.detector.model, (seed, draws)
        stack = own = None
        if model.reconstructs:
            name = self._name(image, about)
            stack = self._read(name, np.float16, (draws, *image.shape))
        if wants_map := model.has_map and mask is not None:
            map_name = self._name(image, about, mask)
            own = self._read(map_name, np.float32, image.shape)
        if (model.reconstructs and stack is None) or (wants_map and own is None):
            made = self.detector.infer(image, mask, seed, draws=draws)
            if made.reconstruction is not None:
                stack = made.reconstruction.numpy().astype(np.float16)
                self._write(name, stack, "reconstruction")
            if made.anomaly is not None:
                own = made.anomaly.numpy()
                self._write(map_name, own, "map")
        return Inference(
            None if stack is None else torch.from_numpy(stack.astype(np.float32)),
            None if own is None else torch.from_numpy(own),
        )

    def _read(self, name: str, kind: type[np.generic], shape: tuple[int, ...]) -> np.ndarray | None:
        found = self.cache.read(name, lambda handle: np.load(handle, allow_pickle=False))
        if found is None or found.dtype != kind or found.shape != shape or not np.isfinite(found).all():
            return None
        return found

    def _write(self, name: str, array: np.ndarray, what: str) -> None:
        if not np.isfinite(array).all():
            raise ValueError(f"its {what} holds NaN or infinite values")
        self.cache.write(name, array.nbytes, lambda handle: np.save(handle, array, allow_pickle=False))

    def _name(self, image: np.ndarray, about: tuple[int, int], mask: np.ndarray | None = None) -> str:
        seed, draws = about
        text = f"{self._detector_key} {seed} {draws} {image.shape} {image.dtype} "
        found = hashlib.sha256(text.encode() + np.ascontiguousarray(image).tobytes())
        if mask is not None:
            found.update(b"map" + np.ascontiguousarray(mask).tobytes())
        return f"{found.hexdigest()[:32]}.npy"
