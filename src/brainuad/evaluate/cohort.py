"""The loop over a cohort: one case in memory at a time, thresholds before test scans, failures as rows."""

from __future__ import annotations

import hashlib
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from brainuad._version import __version__
from brainuad.data.cohort import Case, find_leaks
from brainuad.data.loading import PreparedCase, content_key, load_case
from brainuad.detector import SCORE, Detector
from brainuad.errors import InputError
from brainuad.evaluate.measures import OURS, REFERENCE, Protocol, Thresholds, counted_voxels, measure
from brainuad.evaluate.tables import Progress, key_of, to_table, without_nan, write_tables
from brainuad.evaluation import false_positive_thresholds, pooled_best_threshold, pooled_greedy_threshold
from brainuad.modelfile import portable
from brainuad.registry import SCORES
from brainuad.scoring import postprocess as clean

MIN_VOXELS = 8  # components below are dropped from predictions
Row = dict[str, Any]
Sample = tuple[np.ndarray, np.ndarray]  # scores of some voxels, and whether they are lesion
# what one scan can bring about: unusable numbers, no memory (RuntimeError on a GPU), a file that went away
CASE_ERRORS = (InputError, ValueError, RuntimeError, MemoryError, OSError)


def evaluate_cases(
    detector: Detector,
    cases: Sequence[Case],
    output: str | Path,
    *,
    sets: Sequence[str] | None = None,
    scores: Sequence[str] = (SCORE,),
    reference: bool = False,
    seed: int = 0,
    postprocess: bool = True,
    progress: Callable[[Case, list[Row]], None] = lambda case, rows: None,
    on_scored: Callable[[ScoredCase], None] = lambda scored: None,
) -> pd.DataFrame:
    """Evaluate a detector and write ``cases.csv``, ``summary.csv`` and ``summary.json``.

    Thresholds come from validation scans alone: each set's from the best pooled Dice on its scans with lesions,
    and false-positive thresholds from all healthy ones. Where a set has no validation scan with a lesion, the
    columns at its threshold stay empty and ``summary.json`` says why. Validation scans have rows of their own
    without these columns, for the threshold was fitted to them.

    What is finished is kept in ``progress.jsonl``: a rerun with the same model, scans and settings skips it.

    Args:
        detector: The model, on its device.
        cases: Validation and test cases; training cases are left out.
        output: Folder of the results.
        sets: Data sets to evaluate, all by default. Healthy validation scans of other sets still set thresholds.
        scores: Entries of the score registry.
        reference: Evaluate as the published release does (``REFERENCE``).
        seed: Seeds the noise; every case has its own, whichever other cases there are.
        postprocess: Erode and median-filter maps, and drop small components from predictions.
        progress: Called after each case with its rows.
        on_scored: Called with the volumes of each case that is scored, to draw them, say; a rerun that finds a
            case's rows does not score it again.

    Returns:
        The contents of ``cases.csv``: one row a case and score, with ``status`` "ok" or "failed".

    Raises:
        InputError: A set or score is unknown, there is no test case, or the folder cannot be written to.
    """
    protocol = REFERENCE if reference else OURS
    if protocol.shared_noise:
        detector = detector.with_settings(shared_noise=True)
    for name in scores:
        SCORES[name]  # an unknown one raises before the work begins
    chosen = _choose(cases, sets)
    healthy = [case for case in cases if case.split == "val" and case.lesion is None and case.label == 0]
    run = _Run(detector, tuple(scores), protocol, seed, postprocess, Path(output), progress, on_scored)
    rows = run.all_rows(chosen, healthy)
    table = to_table(rows)
    failed = table[table["status"] == "failed"].drop_duplicates(["set", "subject", "split"])
    about = {
        **run.about(),
        "leaks": [str(leak) for leak in find_leaks(cases)],
        "cases": {
            "evaluated": len(chosen),
            "failed": failed[["set", "subject", "message"]].to_dict("records"),
        },
    }
    write_tables(Path(output), table, about)
    return table


def _choose(cases: Sequence[Case], sets: Sequence[str] | None) -> list[Case]:
    known = list(dict.fromkeys(case.dataset for case in cases))
    for name in sets or ():
        if name not in known:
            raise InputError(name, "is none of the data sets", f"There are: {', '.join(known) or 'none'}")
    chosen = [c for c in cases if c.split in ("val", "test") and (sets is None or c.dataset in sets)]
    if not any(case.split == "test" for case in chosen):
        raise InputError("cases", "hold no test case", "Check the split files and the chosen data sets")
    return chosen


def _message(case: Case, error: BaseException) -> str:
    """Return one line for a failed case; only an ``InputError`` names the file itself."""
    if isinstance(error, InputError):
        return str(error)
    what = " ".join(str(error).split()) or "no memory left"
    return f"{case.image}: {type(error).__name__}: {what}"


def case_seed(seed: int, case: Case) -> int:
    """Return the seed of a case's noise, a function of the seed, the set and the subject."""
    digest = hashlib.sha256(f"{seed}/{case.dataset}/{case.subject}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@dataclass(frozen=True, eq=False)
class ScoredCase:
    """A case with its volumes: the mean reconstruction ``(X, Y, Z)`` and the final anomaly map of every score."""

    prepared: PreparedCase
    reconstruction: np.ndarray
    maps: dict[str, np.ndarray]


@dataclass
class _Run:
    """One call of ``evaluate_cases``."""

    detector: Detector
    scores: tuple[str, ...]
    protocol: Protocol
    seed: int
    postprocess: bool
    output: Path
    report: Callable[[Case, list[Row]], None]
    on_scored: Callable[[ScoredCase], None]
    thresholds: list[Row] = field(default_factory=list)  # and what they were found on

    def __post_init__(self) -> None:
        self.progress = Progress(self.output / "progress.jsonl")
        self.key = key_of(
            __version__,
            self.detector.fingerprint,
            self.scores,
            asdict(self.protocol),
            self.seed,
            self.postprocess,
        )

    def all_rows(self, cases: Sequence[Case], healthy: Sequence[Case]) -> list[Row]:
        """Return the rows of validation and test cases; healthy validation cases come first."""
        nothing = {name: Thresholds() for name in self.scores}
        found, rows = self.find_thresholds(healthy, nothing, self.healthy_sample, self.fit_healthy)
        self.note("all", "false-positive fraction of healthy brain", rows, found)
        by_fraction = {
            name: Thresholds(healthy={float(part): at for part, at in (found or {}).get(name, {}).items()})
            for name in self.scores
        }
        shown = set(cases)
        results = [row for case in healthy if case in shown for row in rows[case]]
        for dataset in dict.fromkeys(case.dataset for case in cases):
            members = [case for case in cases if case.dataset == dataset]
            results += self.set_rows(dataset, members, by_fraction)
        return results

    def set_rows(self, dataset: str, cases: list[Case], known: Mapping[str, Thresholds]) -> list[Row]:
        """Return the rows of one data set: its validation cases with lesions, then its test cases."""
        validation = [case for case in cases if case.split == "val" and case.lesion is not None]
        found, rows = self.find_thresholds(validation, known, self.lesion_sample, self.fit_lesion)
        if any(case.lesion is not None for case in cases):
            how = "greedy search" if self.protocol.greedy_threshold else "best"
            self.note(dataset, f"{how} of the pooled Dice", rows, found)
        thresholds = {}
        for name in self.scores:
            threshold = (found or {}).get(name)
            thresholds[name] = Thresholds(math.nan if threshold is None else threshold, known[name].healthy)
        results = [row for case in validation for row in rows[case]]
        for case in cases:
            if case.split == "test":
                results += self.case_rows(case, thresholds)
            elif case.lesion is None and case.label != 0:  # pathological without annotation: no threshold
                results += self.case_rows(case, known)
        return results

    def find_thresholds(
        self,
        cases: Sequence[Case],
        known: Mapping[str, Thresholds],
        sample: Callable[[PreparedCase, np.ndarray], Sample],
        fit: Callable[[list[Sample]], Any],
    ) -> tuple[dict[str, Any] | None, dict[Case, list[Row]]]:
        """Return what ``fit`` makes of each score's samples, None without a usable case; and the cases' rows."""
        key = key_of("thresholds", fit.__name__, [self.case_key(case, known) for case in cases])
        found = self.progress.get(key)
        samples: dict[str, list[Sample]] = {name: [] for name in self.scores}

        def keep(scored: ScoredCase) -> None:
            for name, anomaly in scored.maps.items():
                samples[name].append(sample(scored.prepared, anomaly))

        rows = {case: self.case_rows(case, known, keep if found is None else None) for case in cases}
        if found is None and samples[self.scores[0]]:
            found = {name: fit(values) for name, values in samples.items()}
            if len(samples[self.scores[0]]) == len(cases):
                self.progress.put(key, without_nan(found))
        return found, rows

    def healthy_sample(self, prepared: PreparedCase, anomaly: np.ndarray) -> Sample:
        """Return the scores of the brain."""
        values = anomaly[prepared.mask]
        return values, np.zeros(values.shape, dtype=bool)

    def lesion_sample(self, prepared: PreparedCase, anomaly: np.ndarray) -> Sample:
        """Return the scores of the voxels that count, and which are lesion."""
        voxels = counted_voxels(prepared, self.protocol)
        assert prepared.lesion is not None
        return anomaly[voxels], prepared.lesion[voxels]

    def fit_healthy(self, samples: list[Sample]) -> dict[str, float]:
        """Return thresholds by false-positive fraction."""
        maps = [values for values, _ in samples]
        found = false_positive_thresholds(maps, [np.ones(len(values), dtype=bool) for values in maps])
        return {f"{fraction:g}": threshold for fraction, threshold in found.items()}

    def fit_lesion(self, samples: list[Sample]) -> float:
        """Return the threshold of the best pooled Dice; NaN if no case has a lesion on the grid."""
        pooled = pooled_greedy_threshold if self.protocol.greedy_threshold else pooled_best_threshold
        return pooled([values for values, _ in samples], [lesion for _, lesion in samples])

    def note(
        self, dataset: str, kind: str, rows: Mapping[Case, list[Row]], found: dict[str, Any] | None
    ) -> None:
        """Remember thresholds and what they were found on, or why there are none."""
        used = [case for case, of_case in rows.items() if of_case[0]["status"] == "ok"]
        entry: Row = {"set": dataset, "kind": kind, "found_on": [f"{c.dataset} {c.subject}" for c in used]}
        if found is None:
            entry["why"] = (
                "no validation case of this kind could be used: nothing is measured at this threshold"
            )
        self.thresholds.append({**entry, "thresholds": found})

    def case_rows(
        self,
        case: Case,
        thresholds: Mapping[str, Thresholds],
        keep: Callable[[ScoredCase], None] | None = None,
    ) -> list[Row]:
        """Return a case's rows, from an earlier run if they are known and its maps need not be kept."""
        key = self.case_key(case, thresholds)
        rows: list[Row] | None = self.progress.get(key) if keep is None else None
        if rows is None:
            try:
                scored = self.score(case)
                rows = [self.measured_row(scored, name, thresholds[name]) for name in self.scores]
            except CASE_ERRORS as error:
                message = _message(case, error)
                rows = [self.label(case, name, "failed", message) for name in self.scores]
            else:
                if keep is not None:
                    keep(scored)
                self.on_scored(scored)
                self.progress.put(key, rows)
        self.report(case, rows)
        return rows

    def case_key(self, case: Case, thresholds: Mapping[str, Thresholds]) -> str:
        """Return a key that changes with whatever could change the case's rows."""
        try:
            content = content_key(case, self.detector.data_config)
        except InputError as error:
            content = str(error)
        values = without_nan({name: asdict(value) for name, value in thresholds.items()})
        return key_of(self.key, case.dataset, case.subject, case.split, content, values)

    def score(self, case: Case) -> ScoredCase:
        """Load, reconstruct and score one case."""
        prepared = load_case(case, self.detector.data_config)
        stack = self.detector.reconstruct(prepared.image, case_seed(self.seed, case))
        if not bool(torch.isfinite(stack).all()):
            raise InputError(
                case.image, "its reconstruction holds NaN or infinite values", "Look at the model"
            )
        maps = self.detector.compare(prepared.image, stack, prepared.mask, self.scores)
        if self.postprocess:
            maps = {name: clean(anomaly, prepared.mask) for name, anomaly in maps.items()}
        arrays = {name: anomaly.cpu().numpy() for name, anomaly in maps.items()}
        return ScoredCase(prepared, stack.mean(0).numpy(), arrays)

    def measured_row(self, scored: ScoredCase, name: str, thresholds: Thresholds) -> Row:
        """Return the row of one case and score."""
        measures = measure(
            scored.prepared,
            scored.reconstruction,
            scored.maps[name],
            self.protocol,
            thresholds,
            min_voxels=MIN_VOXELS if self.postprocess else 1,
            spacing=self.detector.data_config.rescaleFactor,
        )
        row: Row = without_nan(self.label(scored.prepared.case, name, "ok", "") | measures)
        return row

    def label(self, case: Case, name: str, status: str, message: str) -> Row:
        """Return the columns that say what a row is about."""
        return {
            "set": case.dataset,
            "subject": case.subject,
            "split": case.split,
            "score": name,
            "protocol": self.protocol.name,
            "status": status,
            "message": message,
        }

    def about(self) -> Row:
        """Return what made the results, for ``summary.json``."""
        return {
            "version": __version__,
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "numpy": np.__version__,
            },
            "model": {
                "name": self.detector.name,
                "fingerprint": self.detector.fingerprint,
                "settings": asdict(self.detector.model_config),
                "provenance": self.detector.provenance,
            },
            "data": portable(self.detector.data_config),
            "device": str(self.detector.device),
            "protocol": asdict(self.protocol),
            "scores": list(self.scores),
            "postprocess": self.postprocess,
            "seed": self.seed,
            "thresholds": self.thresholds,
        }
