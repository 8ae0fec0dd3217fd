"""Which SSIM width suits which pathology? Average precision and Dice against width, and what the ensemble makes of it.

One pass over the cases: the reconstructions come through the cache, and the SSIM maps of a case are shared by every
width, ensemble and kind of post-processing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from brainuad._version import __version__
from brainuad.data.cohort import Case
from brainuad.data.leaks import People, people
from brainuad.data.loading import PreparedCase
from brainuad.detector import Detector
from brainuad.devices import device_told_from_scan
from brainuad.errors import InputError
from brainuad.evaluate import Reconstructor, Scorer, case_seed
from brainuad.evaluate.loader import Loader
from brainuad.evaluate.progress import Progress, key_of
from brainuad.evaluate.scorer import CASE_ERRORS
from brainuad.evaluation import threshold_curve
from brainuad.scoring import postprocess, score_maps, ssim_maps
from brainuad.scoring.atlas import INTENSITY_ATLAS, OWN_MAP
from brainuad.scoring.ensembles import LEARNT, ensemble, learn_weights, slicewise_ssim_maps
from brainuad.sweep.names import BASE, ENSEMBLE, RAW, SCORE, SLICES, WIDTH

PLAIN = ("random", "intensity_bright", "intensity_dark", "l1")  # to compare with
SAMPLED = 2000  # voxels of lesion, and as many of healthy brain, a scan, to learn weights from
Row = dict[str, Any]


@dataclass(frozen=True)
class Ablations:
    """What else to vary, one at a time.

    Attributes:
        windows: Two-dimensional windows too.
        postprocessing: Without it too.
        timesteps: Single noise levels (1-based) to reconstruct at.
        draws: Numbers of independent reconstructions to average.
        shared_noise: One noise field for all slices too.
    """

    windows: bool = False
    postprocessing: bool = False
    timesteps: tuple[int, ...] = ()
    draws: tuple[int, ...] = ()
    shared_noise: bool = False


@dataclass(frozen=True, eq=False)
class _Source:
    """A way to reconstruct: the detector's own settings, or others."""

    name: str
    reconstruct: Reconstructor
    draws: int = 1
    averaged: int = 1

    def mean(self, prepared: PreparedCase) -> Tensor:
        """Return the mean reconstruction ``(X, Y, Z)``, on CUDA if the model is there.

        The first few of many draws are those of few.
        """
        stack = self.reconstruct(prepared.image, case_seed(0, prepared.case), draws=self.draws)
        mean = stack[: self.averaged].mean(0)
        device = self.reconstruct.detector.device
        return mean.to(device) if device.type == "cuda" else mean


@dataclass(eq=False)
class Sweep:
    """What to vary, and the rows found.

    Attributes:
        detector: The model.
        sigmas: Widths in voxels.
        ensembles: Names in ``brainuad.scoring.ensembles.ENSEMBLES``, over the model's widths.
        ablations: What else.
        output: Folder of the results; a rerun continues there.
        healthy: Validation scans, whose intensities are one of the baselines; of fewer than three it is left out.
        teachers: Annotated validation scans, which teach the weights of "learnt".
    """

    detector: Detector
    sigmas: tuple[float, ...]
    ensembles: tuple[str, ...]
    ablations: Ablations
    output: Path
    healthy: list[Case] = field(default_factory=list)
    teachers: list[Case] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.intensities: Scorer | None = None
        self._samples: dict[Case, tuple[np.ndarray, np.ndarray] | str] = {}
        self.load = Loader(self.detector.data_config)
        self._learnt: dict[tuple[int, ...], dict[str, Any]] = {}
        self._teaching, self._well = People(self.teachers), People(self.healthy)
        self.progress = Progress(self.output / "progress.jsonl")
        self.widths = tuple(self.detector.model_config.sigma_ens)
        self.key = key_of(
            __version__,
            self.detector.result_key,
            self.sigmas,
            self.ensembles,
            asdict(self.ablations),
            self.widths,
            [(case.dataset, case.subject, self.load.content(case)) for case in self.healthy],
            people(self.healthy),
        )

    def sources(self) -> Iterator[_Source]:
        """Yield the ways to reconstruct, the detector's own first."""
        vary = self.ablations
        own = Reconstructor(self.detector)
        yield _Source(BASE, own)
        for level in vary.timesteps:
            detector = self.detector.with_settings(noise_ensemble=False, test_timesteps=level)
            yield _Source(f"t = {level}", Reconstructor(detector))
        for count in vary.draws:
            name = f"{count} draws averaged"
            yield _Source(name, own, max(vary.draws), count)
        if vary.shared_noise:
            shared = not asdict(self.detector.model_config).get("shared_noise")
            detector = self.detector.with_settings(shared_noise=shared)
            yield _Source("shared noise" if shared else "independent noise", Reconstructor(detector))

    def learn(self, measured: Case | None = None) -> dict[str, Any]:
        """Learn the weights of "learnt" from the teachers, without scans of the person who is measured.

        Returns:
            "weights", one a width of the model, and "cases", from whom.

        Raises:
            InputError: There is none, or none can be used.
        """
        own = () if measured is None else self._teaching.own(measured)
        if own in self._learnt:
            return self._learnt[own]
        teachers = [case for place, case in enumerate(self.teachers) if place not in own]
        named = [(case.dataset, case.subject, self.load.content(case)) for case in teachers]
        key = key_of(self.key, "weights", named)
        stored: dict[str, Any] | None = self.progress.get(key)
        if stored is None:
            taught = [(case, self.samples_of(case)) for case in teachers]
            used = [(case, found) for case, found in taught if not isinstance(found, str)]
            if not used:
                why = next((f"none can be used: {found}" for _, found in taught), "there is none")
                others = " of other people" * bool(own)
                fault = f"needs validation scans with drawn lesions{others}; {why}"
                raise InputError(f"ensemble {LEARNT!r}", fault, "Leave it out")
            values, lesion = (
                np.concatenate(parts) for parts in zip(*(found for _, found in used), strict=True)
            )
            names = [f"{case.dataset} {case.subject}" for case, _ in used]
            stored = {"weights": learn_weights(values, lesion), "cases": names}
            self.progress.put(key, stored)
        self._learnt[own] = stored
        return stored

    def samples_of(self, case: Case) -> tuple[np.ndarray, np.ndarray] | str:
        """Return what a case teaches, or why it cannot; the weights come from the others then."""
        if case not in self._samples:
            try:
                prepared = self.load(case)
                with device_told_from_scan(self.detector.device):
                    self._samples[case] = self.sample(prepared, next(self.sources()))
            except CASE_ERRORS as error:
                self._samples[case] = " ".join(str(error).split())
        return self._samples[case]

    def sample(self, prepared: PreparedCase, source: _Source) -> tuple[np.ndarray, np.ndarray]:
        """Return anomalies ``(N, K)`` of as many lesion as healthy voxels, and which are lesion."""
        assert prepared.lesion is not None
        maps = 1 - ssim_maps(source.mean(prepared), prepared.image, sigmas=self.widths)
        final = torch.stack([postprocess(map, prepared.mask) for map in maps]).cpu().numpy()
        rng = np.random.default_rng(case_seed(0, prepared.case))
        brain = prepared.mask | prepared.lesion
        chosen = []
        for kind in (prepared.lesion, brain & ~prepared.lesion):
            places = np.flatnonzero(kind)
            chosen.append(rng.permutation(places)[:SAMPLED])
        flat = np.concatenate(chosen)
        return final.reshape(len(final), -1)[:, flat].T, prepared.lesion.ravel()[flat]

    def case_rows(self, case: Case) -> list[Row]:
        """Return a case's rows, from an earlier run where they are known."""
        prepared: PreparedCase | None = None
        rows: list[Row] = []
        content = self.load.content(case)
        weights = self.learn(case)["weights"] if LEARNT in self.ensembles else []
        own = self._well.own(case)
        for source in self.sources():
            place = [case.dataset, case.subject, case.split, content, source.name]
            key = key_of(self.key, *place, weights, own)
            found = self.progress.get(key)
            if found is None:
                prepared = prepared or self.load(case)
                with device_told_from_scan(self.detector.device):
                    found = list(self.measure(prepared, source, weights))
                self.progress.put(key, found)
            rows += found
        return rows

    def measure(self, prepared: PreparedCase, source: _Source, weights: Sequence[float]) -> Iterator[Row]:
        """Yield a row a map: what was varied, what the map is, and how good it is."""
        reconstruction = source.mean(prepared)
        image = torch.from_numpy(prepared.image).to(reconstruction.device)
        plain = PLAIN if source.name == BASE else PLAIN[-1:]
        maps = {
            (SCORE, name): map
            for name, map in score_maps(image, reconstruction[None], prepared.mask, plain).items()
        }
        if source.name == BASE and self.detector.model.has_map:
            seed = case_seed(0, prepared.case)
            _, own = source.reconstruct.infer(prepared.image, prepared.mask, seed)
            maps |= {
                (SCORE, name): map
                for name, map in self.detector.compare(image, None, prepared.mask, [OWN_MAP], own=own).items()
            }
        if source.name == BASE and (atlas := self.intensity_atlas(prepared.case)) is not None:
            maps[SCORE, INTENSITY_ATLAS] = atlas
        maps |= self.ssim_scores(ssim_maps(reconstruction, image, sigmas=self.all_widths()), weights)
        yield from (_row(prepared, source.name, what, map, cleaned=True) for what, map in maps.items())
        if source.name != BASE:
            return
        if self.ablations.postprocessing:
            yield from (_row(prepared, RAW, what, map, cleaned=False) for what, map in maps.items())
        if self.ablations.windows:
            flat = self.ssim_scores(
                slicewise_ssim_maps(reconstruction, image, sigmas=self.all_widths()), weights
            )
            yield from (_row(prepared, SLICES, what, map, cleaned=True) for what, map in flat.items())

    def intensity_atlas(self, case: Case) -> Tensor | None:
        """Return how far a case's intensities lie from health, ``(X, Y, Z)``; None without enough healthy scans."""
        if self.intensities is None:
            # Intensities need no reconstruction.
            self.intensities = Scorer(
                self.detector,
                postprocess=False,
                reconstructor=lambda image, seed: torch.from_numpy(image)[None],
            )
            self.intensities.learn_health(self.healthy, [INTENSITY_ATLAS])
        if self.intensities.statistics is None:
            return None
        return torch.from_numpy(self.intensities.score(case, [INTENSITY_ATLAS]).maps[INTENSITY_ATLAS])

    def all_widths(self) -> tuple[float, ...]:
        """Return the swept widths and the ensemble's, each once."""
        return tuple(dict.fromkeys((*self.sigmas, *self.widths)))

    def ssim_scores(self, similarities: Tensor, weights: Sequence[float]) -> dict[tuple[str, str], Tensor]:
        """Return the anomaly maps of single widths and of ensembles from SSIM maps at ``all_widths``."""
        index = {sigma: i for i, sigma in enumerate(self.all_widths())}
        scores = {(WIDTH, f"{sigma:g}"): 1 - similarities[index[sigma]] for sigma in self.sigmas}
        chosen = similarities[[index[sigma] for sigma in self.widths]]
        return scores | {(ENSEMBLE, name): ensemble(chosen, name, weights) for name in self.ensembles}


def _row(prepared: PreparedCase, variant: str, what: tuple[str, str], map: Tensor, *, cleaned: bool) -> Row:
    final = (postprocess(map, prepared.mask) if cleaned else map).cpu().numpy()
    assert prepared.lesion is not None
    voxels = prepared.mask | prepared.lesion
    final = np.where(prepared.mask, final, 0)
    curve = threshold_curve(final[voxels], prepared.lesion[voxels])
    return {
        "variant": variant,
        "kind": what[0],
        "name": what[1],
        "average_precision": curve.average_precision(),
        "best_dice": curve.best_dice()[0],
        "chance": float(prepared.lesion[voxels].mean()),
    }
