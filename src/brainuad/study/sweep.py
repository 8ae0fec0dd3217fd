"""Measure average precision and Dice against the width of SSIM, for single widths and ensembles, by pathology.

Every width and every ensemble is a score, and every ablation a detector with other settings. Cases are scored and
measured as in an evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from brainuad._version import __version__
from brainuad.data.cohort import Case
from brainuad.data.leaks import People
from brainuad.detector import Detector
from brainuad.errors import InputError
from brainuad.files import key_of, write_json, write_text
from brainuad.scoring.ensembles import LEARNT, learn_weights
from brainuad.scoring.names import OWN_MAP
from brainuad.scoring.repertoire import SCORE
from brainuad.study.cohort import loadable, scores_to_compute
from brainuad.study.html_page import write_page
from brainuad.study.protocol import ANY, MODEL, QUICK
from brainuad.study.results import NO_THRESHOLDS, Results
from brainuad.study.run import message_of
from brainuad.study.scorer import CASE_ERRORS, Scorer, case_seed
from brainuad.study.sweep_page import BASE, ENSEMBLE, MEASURES, RAW, SLICES, WIDTH, draw, page
from brainuad.study.sweep_page import SCORE as PLAIN

SAMPLED = 2000  # lesion voxels per scan, and as many healthy ones, to learn weights from
Row = dict[str, Any]


@dataclass(frozen=True)
class Ablations:
    """Further changes to measure, one at a time.

    Attributes:
        windows: Measure two-dimensional windows, too.
        postprocessing: Measure without post-processing, too.
        timesteps: Single noise levels (1-based) to reconstruct at.
        draws: Numbers of independent draws of the noise to average.
        shared_noise: Measure with one noise field for all slices, too.
    """

    windows: bool = False
    postprocessing: bool = False
    timesteps: tuple[int, ...] = ()
    draws: tuple[int, ...] = ()
    shared_noise: bool = False


NO_ABLATIONS = Ablations()


@dataclass(frozen=True, eq=False)
class _Variant:
    """One way to make the maps: its name, its results, the scores besides SSIM, and its windows."""

    name: str
    results: Results
    plain: Sequence[str] = ("l1",)
    windows: str = "ssim"


def run_sweep(
    detector: Detector,
    cases: Sequence[Case],
    output: str | Path,
    *,
    sigmas: Sequence[float],
    ensembles: Sequence[str] = ("default",),
    ablations: Ablations = NO_ABLATIONS,
    split: str = "test",
    sets: Sequence[str] | None = None,
    report: Callable[[Case, str], None] = lambda case, message: None,
) -> tuple[pd.DataFrame, list[str]]:
    """Sweep over widths and write ``sweep.csv``, ``summary.csv``, ``summary.md``, ``sweep.png`` and ``sweep.json``.

    Args:
        detector: The model, on its device.
        cases: Annotated cases of ``split`` are measured. The weights of "learnt" come from annotated validation cases,
            the intensity atlas from healthy ones, always without scans of the measured subject.
        output: Folder of the results; a rerun continues there.
        sigmas: Widths in voxels.
        ensembles: See ``brainuad.scoring.ensembles.ENSEMBLES``.
        ablations: Further changes to measure.
        split: "test" or "val".
        sets: Data sets to measure, all by default. Weights are learnt from the validation cases of all sets.
        report: Called after each case with the case and its error message, "" if it succeeded.

    Returns:
        One row per case and map, and a message for each failed case.

    Raises:
        InputError: The model makes no reconstruction, there is no annotated case, nothing to learn from, or the folder
            cannot be written to.
    """
    detector.scores.check_made(SCORE)
    annotated = [case for case in cases if case.split == split and case.lesion is not None]
    chosen = [case for case in annotated if sets is None or case.dataset in sets]
    if not chosen:
        raise InputError("cases", f"hold no {split} case with a drawn lesion", "A sweep needs them")
    output = Path(output)
    healthy = [case for case in cases if case.split == "val" and case.healthy]
    teachers = [case for case in cases if case.split == "val" and case.lesion is not None]
    variants = list(_variants(detector, healthy, output, ablations))
    weights = _Weights(variants[0].results, teachers)
    learnt = weights.without(None) if LEARNT in ensembles else {"weights": [], "cases": []}
    rows: list[Row] = []
    failed: list[str] = []
    for case in variants[0].results.scorer.load.in_turn(chosen):
        message = ""
        try:
            own = weights.without(case)["weights"] if LEARNT in ensembles else []
            rows += [row for variant in variants for row in _rows(case, variant, sigmas, ensembles, own)]
        except CASE_ERRORS as error:
            message = message_of(case, error)
            failed.append(message)
        report(case, message)
    table = pd.DataFrame(rows)
    if rows:
        _write_tables(output, table, weights.widths, failed)
    about = {
        "version": __version__,
        "model": {"name": detector.name, "fingerprint": detector.fingerprint},
        "settings": asdict(detector.model_config),
        "sigmas": list(sigmas),
        "ensembles": list(ensembles),
        "ablations": asdict(ablations),
        "split": split,
        "learnt": {
            "weights": dict(zip(map(str, weights.widths), learnt["weights"], strict=False)),
            "on": learnt["cases"],
            "without": "scans of the person who is measured",
        },
        "failed": failed,
    }
    write_json(output / "sweep.json", about)
    return table, failed


def _write_tables(output: Path, table: pd.DataFrame, widths: Sequence[float], failed: Sequence[str]) -> None:
    summary, text = page(table, widths, failed)
    write_text(output / "sweep.csv", table.to_csv(index=False))
    write_text(output / "summary.csv", summary.to_csv(index=False))
    write_text(output / "summary.md", text)
    draw(summary, output / "sweep.png")
    write_page(output / "summary.html", text, [output / "sweep.png"])


def _variants(detector: Detector, healthy: Sequence[Case], output: Path, vary: Ablations) -> Iterator[_Variant]:
    """Yield the ways to make the maps, the detector's settings first."""
    scorer = Scorer(detector)
    load = scorer.load
    names, _ = scores_to_compute(["l1"], True, detector.health, lambda: loadable(healthy, load))
    plain = [*names, OWN_MAP] if detector.model.has_map else names

    def results(of: Detector, *, postprocess: bool = True) -> Results:
        scorer = Scorer(of, postprocess=postprocess)
        scorer.load = load  # files are hashed once
        return Results(scorer, plain, QUICK, output, healthy)

    own = results(detector)
    yield _Variant(BASE, own, plain)
    if vary.postprocessing:
        yield _Variant(RAW, results(detector, postprocess=False), plain)
    if vary.windows:
        yield _Variant(SLICES, own, (), "ssim2d")
    for level in vary.timesteps:
        changed = detector.with_settings(noise_ensemble=False, test_timesteps=level)
        yield _Variant(f"t = {level}", results(changed))
    for count in vary.draws:
        yield _Variant(f"{count} draws averaged", results(detector.with_settings(noise_draws=count)))
    if vary.shared_noise:
        shared = not getattr(detector.model_config, "shared_noise", False)
        name = "shared noise" if shared else "independent noise"
        yield _Variant(name, results(detector.with_settings(shared_noise=shared)))


def _rows(
    case: Case, variant: _Variant, sigmas: Sequence[float], ensembles: Sequence[str], weights: Sequence[float]
) -> Iterator[Row]:
    """Yield a row per map of one case: the variant, the score, and the measures."""
    scores = {(PLAIN, name): name for name in variant.plain}
    scores |= {(WIDTH, f"{sigma:g}"): f"{variant.windows}_{sigma:.9g}" for sigma in sigmas}
    spelled = {LEARNT: f"weights:{','.join(map(repr, weights))}", "default": "ensemble"}
    scores |= {(ENSEMBLE, name): f"{variant.windows}_{spelled.get(name, name)}" for name in ensembles}
    found = variant.results.of(case, dict.fromkeys(scores.values(), NO_THRESHOLDS))
    keys = {"set": case.dataset, "case": case.subject, "split": case.split, "variant": variant.name}
    for (kind, name), score in scores.items():
        measures = found.measures[score][MODEL][ANY]
        yield keys | {"kind": kind, "name": name} | {what: measures[what] for what in (*MEASURES, "chance")}


class _Weights:
    """The weights of the ensemble "learnt", one per width of the model, learnt from annotated validation scans."""

    def __init__(self, results: Results, teachers: Sequence[Case]) -> None:
        self.results, self.teachers, self._people = results, teachers, People(teachers)
        self.widths = tuple(results.scorer.detector.model_config.sigma_ens)
        self._learnt: dict[tuple[int, ...], Row] = {}
        self._samples: dict[Case, tuple[np.ndarray, np.ndarray] | str] = {}

    def without(self, measured: Case | None) -> Row:
        """Return "weights", and the "cases" that they were learnt from: those of other subjects than the measured.

        Raises:
            InputError: There is none, or none can be used.
        """
        own = () if measured is None else self._people.own(measured)
        if own in self._learnt:
            return self._learnt[own]
        teachers = [case for index, case in enumerate(self.teachers) if index not in own]
        key = key_of("weights", [self.results.case_key(case) for case in teachers])
        stored: Row | None = self.results.progress.get(key)
        if stored is None:
            taught = [(case, self.samples_of(case)) for case in teachers]
            used = [(case, found) for case, found in taught if not isinstance(found, str)]
            if not used:
                why = next((f"none can be used: {found}" for _, found in taught), "there is none")
                others = " of other people" * bool(own)
                fault = f"needs validation scans with drawn lesions{others}; {why}"
                raise InputError(f"ensemble {LEARNT!r}", fault, "Leave it out")
            parts = zip(*(found for _, found in used), strict=True)
            values, lesion = (np.concatenate(part) for part in parts)
            names = [f"{case.dataset} {case.subject}" for case, _ in used]
            stored = {"weights": learn_weights(values, lesion), "cases": names}
            self.results.progress.put(key, stored)
        self._learnt[own] = stored
        return stored

    def samples_of(self, case: Case) -> tuple[np.ndarray, np.ndarray] | str:
        """Return anomalies ``(N, K)`` of lesion and healthy voxels, and ``(N,)`` bool, lesion; or why it has none."""
        if case not in self._samples:
            try:
                prepared, maps = self.results.scorer.score(case, [f"ssim_{width:.9g}" for width in self.widths])
            except CASE_ERRORS as error:
                self._samples[case] = " ".join(str(error).split())
                return self._samples[case]
            mask, lesion = prepared.mask, prepared.lesion
            assert lesion is not None
            rng = np.random.default_rng(case_seed(0, case))
            voxels = [np.flatnonzero(kind) for kind in (lesion, (mask | lesion) & ~lesion)]
            chosen = np.concatenate([rng.permutation(of_kind)[:SAMPLED] for of_kind in voxels])
            values = np.stack([map.ravel()[chosen] for map in maps.final.values()], axis=1)
            self._samples[case] = values, lesion.ravel()[chosen]
        return self._samples[case]
