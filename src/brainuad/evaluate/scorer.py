"""From a case to its final anomaly maps: load, reconstruct, compare, set against health, clean."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from brainuad.data.cohort import Case
from brainuad.data.leaks import People, scans_of_others
from brainuad.data.loading import PreparedCase
from brainuad.detector import Detector
from brainuad.devices import device_told_from_scan
from brainuad.errors import InputError
from brainuad.evaluate.cache import Reconstructor
from brainuad.evaluate.loader import Loader
from brainuad.scoring.atlas import IMAGE, HealthyStatistics, base_of
from brainuad.scoring.rarity import cleaned

MIN_OTHERS = 2  # scans of other people, for a mean and a deviation
# what one scan can bring about: unusable numbers, no memory (RuntimeError on a GPU), a file that went away
CASE_ERRORS = (InputError, ValueError, RuntimeError, MemoryError, OSError)


@dataclass(frozen=True, eq=False)
class ScoredCase:
    """A case with its volumes: the mean reconstruction ``(X, Y, Z)`` if any, and the final map of every score."""

    prepared: PreparedCase
    reconstruction: np.ndarray | None
    maps: dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class _Compared:
    """A case with its maps before they are set against health and cleaned."""

    prepared: PreparedCase
    reconstruction: Tensor | None
    mask: Tensor
    maps: dict[str, Tensor]


def case_seed(seed: int, case: Case) -> int:
    """Return the seed of a case's noise, a function of the seed, the set and the subject."""
    digest = hashlib.sha256(f"{seed}/{case.dataset}/{case.subject}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@dataclass(eq=False)
class Scorer:
    """Scores cases one at a time.

    Attributes:
        detector: The model.
        seed: Seeds the noise; every case has its own, whichever other cases there are.
        postprocess: Whether maps are eroded and median-filtered.
        statistics: Of healthy scans, for scores relative to health; see :meth:`learn_health`. Without them such scores
            compare with what the model itself carries.
        healthy: The cases they were learnt from.
        reconstructor: From an image ``(X, Y, Z)`` and a seed to reconstructions ``(S, X, Y, Z)``, in place of the
            detector's own, which go through the cache.
    """

    detector: Detector
    seed: int = 0
    postprocess: bool = True
    statistics: HealthyStatistics | None = None
    healthy: list[Case] = field(default_factory=list)
    reconstructor: Callable[[np.ndarray, int], Tensor] | None = None

    def __post_init__(self) -> None:
        self.load = Loader(self.detector.data_config)
        self._cached = Reconstructor(self.detector)
        self._people = People(self.healthy)

    def score(self, case: Case, names: Iterable[str]) -> ScoredCase:
        """Return a case's final maps.

        What a subject's own scan has told about health is left out when the subject is scored.

        Raises:
            InputError: A file cannot be used.
            ValueError: The reconstruction is not finite, or too few healthy scans are left to compare with.
            DeviceError: The device does not work any more.
        """
        with device_told_from_scan(self.detector.device):
            return self._score(case, names)

    def _score(self, case: Case, names: Iterable[str]) -> ScoredCase:
        bases = {name: base_of(name) for name in names}
        compared = self._compare(case, [base or name for name, base in bases.items()])
        relative = [base for base in bases.values() if base is not None]
        own = (
            []
            if not relative
            else [
                compared if other == case else self._compare(other, relative)
                for other in self.own_scans(case)
            ]
        )
        mask = compared.prepared.mask
        found = {}
        for name, base in bases.items():
            final = compared.maps[base or name]
            if base is not None and self.statistics is not None:
                twins = [(twin.maps[base], twin.prepared.mask) for twin in own]
                final = self.statistics.score(name, final, mask, twins)
            elif base is not None:
                if self.detector.health is None:
                    raise ValueError(f"{name} needs healthy scans to compare with")
                final = self.detector.health.score(name, final, mask)
            found[name] = (cleaned(name, final, compared.mask) if self.postprocess else final).cpu().numpy()
        reconstruction = None if compared.reconstruction is None else compared.reconstruction.numpy()
        return ScoredCase(compared.prepared, reconstruction, found)

    def learn_health(
        self, cases: Sequence[Case], names: Iterable[str], report: Callable[[Case], None] = lambda case: None
    ) -> None:
        """Learn from healthy scans what ``names``, scores relative to health, compare with.

        A scan that cannot be used is left out. Each is compared with those of other people: where one would have fewer
        than two, the statistics stay None.
        """
        bases = list(dict.fromkeys(base for name in names if (base := base_of(name)) is not None))
        statistics: HealthyStatistics | None = None
        used = []
        for case in self.load.in_turn(cases):
            try:
                with device_told_from_scan(self.detector.device):
                    compared = self._compare(case, bases)
            except CASE_ERRORS:
                continue  # it will fail again, and be reported, when it is scored
            statistics = statistics or HealthyStatistics(bases, compared.prepared.mask.shape)
            statistics.add(compared.maps, compared.prepared.mask)
            used.append(case)
            report(case)
        if scans_of_others(used) >= MIN_OTHERS:
            self.statistics, self.healthy = statistics, used

    def own_scans(self, case: Case) -> list[Case]:
        """Return the healthy scans of a case's own person, itself among them where it is one."""
        if self._people.cases != self.healthy:
            self._people = People(self.healthy)
        return [self.healthy[place] for place in self._people.own(case)]

    def _compare(self, case: Case, names: Iterable[str]) -> _Compared:
        prepared = self.load(case)
        seed = case_seed(self.seed, case)
        if self.reconstructor is None:
            stack, own = self._cached.infer(prepared.image, prepared.mask, seed)
        else:
            stack, own = self.reconstructor(prepared.image, seed), None
        wanted = [name for name in dict.fromkeys(names) if name != IMAGE]
        place = self.detector.map_device
        image, mask = (torch.from_numpy(array).to(place) for array in (prepared.image, prepared.mask))
        maps = self.detector.compare(image, stack, mask, wanted, own=own)
        maps[IMAGE] = image
        return _Compared(prepared, None if stack is None else stack.mean(0), mask, maps)
