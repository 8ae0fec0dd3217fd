"""Compute a case's anomaly maps: load, reconstruct, compare, relate to healthy scans, post-process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from brainuad.data.cohort import Case
from brainuad.data.leaks import People, scans_of_others
from brainuad.data.loading import PreparedCase, cache_folder
from brainuad.detector import Detector, Maps, Relate
from brainuad.devices import device_told_from_scan
from brainuad.errors import InputError
from brainuad.files import Cache
from brainuad.models.base import Inference
from brainuad.scoring.health import HealthyStatistics
from brainuad.scoring.names import IMAGE, base_of
from brainuad.study.loader import Loader

MAX_BYTES = 4_000_000_000  # cache of reconstructions on disk, so that a new score takes seconds
MIN_OTHERS = 2  # fewest scans of other people for a mean and a standard deviation
# errors that one scan can cause: unusable values, no memory (RuntimeError on a GPU), a missing file
CASE_ERRORS = (InputError, ValueError, RuntimeError, MemoryError, OSError)
_PARTS = {"reconstruction": "reconstruction", "anomaly": "map", "second": "second reconstruction"}


class CachedInference:
    """What a detector makes of images, from a cache on disk where it was made before.

    The key of a reconstruction is the image's voxels, the detector's fingerprint (weights and settings, including those
    of the noise), the kind of device, its precision, the seed, the number of draws, and which of two reconstructions it
    is; that of a model's own map includes the brain mask. Reconstructions are always rounded to 16 bits, so results do
    not depend on the cache. The least recently used entries are removed first.
    """

    def __init__(self, detector: Detector, max_bytes: int = MAX_BYTES) -> None:
        self.detector = detector
        folder = cache_folder(detector.data_config) / "reconstructions"
        self.cache = Cache(folder, max_bytes, "Reconstructions are not kept")
        self._detector_key = detector.result_key

    def __call__(self, image: np.ndarray, mask: np.ndarray | None, seed: int, names: Sequence[str] = ()) -> Inference:
        """Return the result of `Detector.infer` as float32, with reconstructions rounded to 16 bits.

        Raises:
            ValueError: The image is not (X, Y, Z), or the model's output holds NaN or infinite values.
        """
        model, draws = self.detector.model, self.detector.scores.draws(names)
        entries: dict[str, tuple[str, type[np.generic], tuple[int, ...]]] = {}
        if model.reconstructs:
            entries["reconstruction"] = self._name(image, seed, draws), np.float16, (draws, *image.shape)
        if model.has_map and mask is not None:
            of_mask = b"map" + np.ascontiguousarray(mask).tobytes()
            entries["anomaly"] = self._name(image, seed, draws, of_mask), np.float32, image.shape
        if self.detector.scores.needs_second(names):
            entries["second"] = self._name(image, seed, 1, b"second"), np.float16, image.shape
        arrays = {part: self._read(*entry) for part, entry in entries.items()}
        missing = [part for part, array in arrays.items() if array is None]
        made: dict[str, Tensor] = {}
        if missing == ["second"]:
            made["second"] = self.detector.reconstruct_second(image, seed)
        elif missing:
            made = self.detector.infer(image, mask, seed, names)._asdict()
        for part in missing:
            name, kind, _ = entries[part]
            array = made[part].numpy().astype(kind)
            if not np.isfinite(array).all():
                raise ValueError(f"its {_PARTS[part]} holds NaN or infinite values")
            self.cache.write(name, array.nbytes, partial(np.save, arr=array, allow_pickle=False))
            arrays[part] = array
        kept = {part: torch.from_numpy(array.astype(np.float32)) for part, array in arrays.items() if array is not None}
        return Inference(kept.get("reconstruction"), kept.get("anomaly"), kept.get("second"))

    def _read(self, name: str, kind: type[np.generic], shape: tuple[int, ...]) -> np.ndarray | None:
        array = self.cache.read(name, lambda handle: np.load(handle, allow_pickle=False))
        if array is None or array.dtype != kind or array.shape != shape or not np.isfinite(array).all():
            return None
        return array

    def _name(self, image: np.ndarray, seed: int, draws: int, of: bytes = b"") -> str:
        text = f"{self._detector_key} {seed} {draws} {image.shape} {image.dtype} "
        digest = hashlib.sha256(text.encode() + np.ascontiguousarray(image).tobytes() + of)
        return f"{digest.hexdigest()[:32]}.npy"


def case_seed(seed: int, case: Case) -> int:
    """Return the seed of a case's noise, a function of the seed, the set and the subject."""
    digest = hashlib.sha256(f"{seed}/{case.dataset}/{case.subject}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@dataclass(eq=False)
class Scorer:
    """Scores cases one at a time.

    Attributes:
        detector: The model.
        seed: Seed of the noise. A case's noise does not depend on the other cases.
        postprocess: Whether maps are post-processed.
        statistics: Healthy-scan statistics for scores relative to health; see `learn_health`. Without them such
            scores use the model's.
        healthy: The cases that the statistics were learnt from.
        infer: Function with the arguments of `Detector.infer`. By default that, with a cache.
        stage: Called with subject and step ("IXI067: reconstruct") as one begins.
    """

    detector: Detector
    seed: int = 0
    postprocess: bool = True
    statistics: HealthyStatistics | None = None
    healthy: list[Case] = field(default_factory=list)
    infer: Callable[[np.ndarray, np.ndarray | None, int, Sequence[str]], Inference] | None = None
    stage: Callable[[str], None] = lambda name: None

    def __post_init__(self) -> None:
        self.load = Loader(self.detector.data_config)
        self._infer = self.infer or CachedInference(self.detector)
        self._people = People(self.healthy)

    def score(self, case: Case, names: Iterable[str]) -> tuple[PreparedCase, Maps]:
        """Return a case on the model's grid, and its maps there.

        The statistics leave out the subject's own scans.

        Raises:
            InputError: A file cannot be used.
            ValueError: The reconstruction is not finite, or too few healthy scans are left to compare with.
            DeviceError: The device does not work any more.
        """
        names = list(dict.fromkeys(names))
        relative = [base for name in names if (base := base_of(name)) is not None]
        with device_told_from_scan(self.detector.device):
            relate = self._without_own(self.statistics, case, relative) if self.statistics and relative else None
            prepared, inference = self._load(case, names)
            image, mask = self._there(prepared)
            maps = self.detector.maps(image, mask, names, inference=inference, relate=relate, clean=self.postprocess)
        return prepared, maps

    def _without_own(self, statistics: HealthyStatistics, case: Case, bases: Sequence[str]) -> Relate:
        """Return a function that sets a map against healthy scans, those of the case's own subject left out."""
        own = [None if other == case else self._raw(other, bases) for other in self.own_scans(case)]

        def relate(name: str, map: Tensor, mask: Tensor) -> Tensor:
            base = base_of(name)
            assert base is not None
            without = [(map, mask) if raw is None else (raw[0][base], raw[1]) for raw in own]  # None: the case itself
            return statistics.score(name, map, mask, without)

        return relate

    def learn_health(self, cases: Sequence[Case], names: Iterable[str]) -> None:
        """Learn the healthy-scan statistics for ``names``, scores relative to health.

        A scan that cannot be used is left out. Each healthy scan is later compared with those of other people: if one
        has fewer than two of these, the statistics stay None.
        """
        bases = list(dict.fromkeys(base for name in names if (base := base_of(name)) is not None))
        statistics: HealthyStatistics | None = None
        used = []
        for case in self.load.in_turn(cases):
            try:
                with device_told_from_scan(self.detector.device):
                    maps, mask = self._raw(case, bases)
            except CASE_ERRORS:
                continue  # it will fail again when it is scored, and be reported then
            statistics = statistics or HealthyStatistics(bases, mask.shape)
            statistics.add(maps, mask)
            used.append(case)
        if scans_of_others(used) >= MIN_OTHERS:
            self.statistics, self.healthy = statistics, used

    def own_scans(self, case: Case) -> list[Case]:
        """Return the healthy scans of a case's subject, including the case itself if it is one."""
        if self._people.cases != self.healthy:
            self._people = People(self.healthy)
        return [self.healthy[index] for index in self._people.own(case)]

    def reconstruct(self, case: Case, names: Iterable[str]) -> None:
        """Load and reconstruct a case, into the caches, so that these scores of it take seconds later.

        Raises:
            InputError: A file cannot be used.
            ValueError: The reconstruction is not finite.
            DeviceError: The device does not work any more.
        """
        with device_told_from_scan(self.detector.device):
            self._load(case, list(names))

    def _load(self, case: Case, names: Sequence[str]) -> tuple[PreparedCase, Inference]:
        """Load a case, and return it with what its scores need of the model."""
        prepared = self.load(case)
        self.stage(f"{case.subject}: reconstruct")
        inference = self._infer(prepared.image, prepared.mask, case_seed(self.seed, case), names)
        self.stage(f"{case.subject}: score")
        return prepared, inference

    def _raw(self, case: Case, bases: Sequence[str]) -> tuple[dict[str, Any], np.ndarray]:
        """Return the raw maps of a case that scores are relative to, the image among them, and its brain mask."""
        wanted = [name for name in bases if name != IMAGE]
        if not wanted:  # nothing needs the model
            prepared = self.load(case)
            return {IMAGE: prepared.image}, prepared.mask
        prepared, inference = self._load(case, wanted)
        image, mask = self._there(prepared)
        return {**self.detector.compare(image, inference, mask, wanted), IMAGE: image}, prepared.mask

    def _there(self, prepared: PreparedCase) -> tuple[Tensor, Tensor]:
        """Return image and brain mask where maps are computed."""
        device = self.detector.map_device
        return torch.from_numpy(prepared.image).to(device), torch.from_numpy(prepared.mask).to(device)
