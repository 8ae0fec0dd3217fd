"""One evaluation run: thresholds first, then the measures of every case; finished results are read from disk."""

from __future__ import annotations

import math
import platform
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from brainuad._version import __version__
from brainuad.data.cohort import Case
from brainuad.data.loading import PreparedCase
from brainuad.detector import Maps
from brainuad.errors import InputError
from brainuad.evaluation import FALSE_POSITIVE_FRACTIONS, ScoreHistogram, empty_histogram
from brainuad.modelfile import portable
from brainuad.study.protocol import FROC_FRACTIONS, MODEL, VALIDATION, Protocol, Thresholds, healthy_name
from brainuad.study.ranks import Ranks
from brainuad.study.results import Result, Results
from brainuad.study.scorer import CASE_ERRORS, Scorer
from brainuad.study.tables import Pools, Rows, Subject, case_rows, failed_row, wide

Row = dict[str, Any]


@dataclass
class Run:
    """One call of ``evaluate_cases``. With several ranks, the first collects all results."""

    scorer: Scorer
    scores: tuple[str, ...]
    protocol: Protocol
    output: Path
    healthy: list[Case]
    report: Callable[[Case, str], None]
    on_scored: Callable[[PreparedCase, Maps], None]
    ranks: Ranks = field(default_factory=Ranks)
    maps: bool = False
    rows: Rows = field(default_factory=Rows)
    thresholds: list[Row] = field(default_factory=list)  # and the scans they come from
    failed: list[Row] = field(default_factory=list)
    pools: Pools = field(default_factory=Pools)
    subjects: dict[tuple[str, str, str], Subject] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.results = Results(
            self.scorer, self.scores, self.protocol, self.output, self.healthy, self.ranks.number, self.on_scored,
            maps=self.maps,
        )  # fmt: skip

    def evaluate(self, cases: Sequence[Case]) -> None:
        """Measure validation and test cases; healthy validation cases come first."""
        self.names = _names(cases)
        self.results.health.learn_across(self.ranks)
        known = self.ranks.agreed(self.healthy_thresholds())
        for dataset in dict.fromkeys(case.dataset for case in cases):
            members = [case for case in cases if case.dataset == dataset]
            thresholds = self.ranks.agreed(self.set_thresholds(dataset, members, known))
            tests = [case for case in members if case.split == "test"]
            for case, result in self.each_measured(tests, thresholds):
                self.pools.add(case, result.histograms, result.froc)
            # pathological validation cases without annotation set no threshold
            others = [c for c in members if c.split != "test" and c.lesion is None and c.label != 0]
            for _ in self.each_measured(others, known):
                pass

    def each_measured(
        self, cases: Sequence[Case], thresholds: Mapping[str, Thresholds]
    ) -> Iterator[tuple[Case, Result]]:
        """Yield the results of all cases that can be scored.

        Ranks divide the cases; then the first yields all results, and the others none.
        """
        in_turn = partial(
            self.scorer.load.in_turn,
            wanted=partial(self.results.incomplete, thresholds=thresholds),
            native=self.protocol.native,
        )
        if self.ranks.count > 1:
            for case in in_turn(self.ranks.own_part(cases)):
                with suppress(*CASE_ERRORS):  # the first rank tries again, and reports the error
                    self.results.of(case, thresholds)
            self.ranks.wait()
            if not self.ranks.first:
                return
            self.results.progress.read()
        for case in in_turn(cases):
            result = self.measured(case, thresholds)
            if result is not None:
                yield case, result

    def healthy_thresholds(self) -> dict[str, Thresholds]:
        """Return the thresholds that given fractions of healthy brain voxels exceed."""
        nothing = dict.fromkeys(self.scores, Thresholds())
        used, pooled = self.pooled(self.healthy, nothing)
        entry: Row = {"set": "all", "kind": "false-positive fraction of healthy brain"}
        if used:
            thresholds = {name: _healthy_thresholds(pooled[name]) for name in self.scores}
            entry["found_on"] = _listed(used)
        else:
            thresholds = {name: self.calibrated(name) for name in self.scores}
            if any(thresholds[name].named for name in self.scores):
                entry["found_on"] = ["the healthy scans that the model was calibrated on"]
        named = {name: dict(thresholds[name].named) for name in self.scores}
        self.note(entry, named if any(named.values()) else None)
        return thresholds

    def calibrated(self, name: str) -> Thresholds:
        """Return the thresholds of the model's calibration; none if it was made with other settings."""
        calibration = self.scorer.detector.calibration
        if calibration is None or self.protocol.shared_noise or calibration.postprocess is not self.scorer.postprocess:
            return Thresholds()
        of_score = calibration.thresholds.get(name, {})
        named = {
            healthy_name(fraction): float(of_score[fraction])
            for fraction in FALSE_POSITIVE_FRACTIONS
            if fraction in of_score
        }
        return Thresholds(named, tuple(sorted(set(named.values()))))

    def set_thresholds(
        self, dataset: str, cases: Sequence[Case], known: Mapping[str, Thresholds]
    ) -> dict[str, Thresholds]:
        """Return the given thresholds, and that of the best pooled Dice on a set's annotated validation cases."""
        annotated = [case for case in cases if case.split == "val" and case.lesion is not None]
        used, pooled = self.pooled(annotated, known)
        best = {name: self.best_threshold(name, used, pooled[name]) for name in self.scores} if used else {}
        best = {name: threshold for name, threshold in best.items() if not math.isnan(threshold)}
        if any(case.lesion is not None for case in cases):
            how = "greedy search" if self.protocol.greedy_threshold else "best"
            entry: Row = {"set": dataset, "kind": f"{how} of the pooled Dice", "found_on": _listed(used)}
            self.note(entry, {name: {VALIDATION: at} for name, at in best.items()} or None)
        return {
            name: Thresholds({**known[name].named, VALIDATION: best[name]}, known[name].froc)
            if name in best
            else known[name]
            for name in self.scores
        }

    def best_threshold(self, name: str, used: Sequence[Case], pooled: ScoreHistogram) -> float:
        """Return the threshold of the best pooled Dice; NaN if no case has a lesion on the grid."""
        if self.protocol.greedy_threshold:
            return self.results.greedy_threshold(used, name)
        threshold = pooled.best_dice()[1]
        return -1.0 if threshold == -math.inf else threshold  # below all values of every map

    def pooled(
        self, cases: Sequence[Case], thresholds: Mapping[str, Thresholds]
    ) -> tuple[list[Case], dict[str, ScoreHistogram]]:
        """Return the cases that can be scored, and the counts of all their voxels by score."""
        used, pooled = [], {name: empty_histogram() for name in self.scores}
        for case, result in self.each_measured(cases, thresholds):
            used.append(case)
            for name in self.scores:
                pooled[name] += result.histograms[f"{MODEL} {name}"]
        return used, pooled

    def note(self, entry: Row, thresholds: dict[str, dict[str, float]] | None) -> None:
        """Record thresholds and the scans they come from, or why there are none."""
        entry.setdefault("found_on", [])
        if thresholds is None:
            entry["why"] = "no validation case of this kind could be used: nothing is measured at this threshold"
        self.thresholds.append({**entry, "thresholds": thresholds})

    def measured(self, case: Case, thresholds: Mapping[str, Thresholds]) -> Result | None:
        """Return a case's results, from an earlier run if it has them; None if the case cannot be scored."""
        message, result = "", None
        try:
            result = self.results.of(case, thresholds)
        except CASE_ERRORS as error:
            message = message_of(case, error)
        if case in self.names:  # not a healthy scan of a set that was not chosen
            name = self.names[case]
            self.subjects[case.dataset, case.split, name] = Subject.of(case)
            if result is None:
                row = failed_row(case, name, message)
                self.failed.append({column: row[column] for column in ("set", "case", "split", "message")})
                self.rows.add([row])
            else:
                self.rows.add(case_rows(case, name, result.facts, result.measures))
        self.report(case, message)
        return result

    def draw_montages(self, table: pd.DataFrame, summary: Mapping[str, Any]) -> list[Path]:
        """Draw each set's best, median and worst case by its best calibrated score; return the paths."""
        from brainuad.report.montage import Overlay
        from brainuad.study.figures import COLOURS, draw_montage, file_name, telling_cases

        healthy = summary["thresholds"][0]["thresholds"] or {}
        cases = {(case.dataset, name): case for case, name in self.names.items() if case.split == "test"}
        test = wide(table, split="test")
        in_atlas = self.scorer.detector.data_config.affine == "used"
        paths: list[Path] = []
        for dataset, compared in summary["comparisons"].items():
            score = compared["best"]
            if not healthy.get(score):
                continue
            for kind, (name, precision) in telling_cases(test, dataset, score).items():
                self.results.health.ensure([score])
                prepared, maps = self.scorer.score(cases[dataset, name], [score])
                title = f"{kind} of {dataset}: {name} · average precision {precision:.3f}"
                path = self.output / "figures" / f"{file_name(dataset, kind)}.png"
                overlay = Overlay(score, maps.final[score], *(healthy[score][colour] for colour in COLOURS))
                draw_montage(prepared, maps.reconstruction, [overlay], path, title, in_atlas=in_atlas)
                paths.append(path)
        return paths

    def about(self) -> Row:
        """Return the provenance of the results, for ``summary.json``."""
        detector = self.scorer.detector
        return {
            "version": __version__,
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
            "model": {
                "name": detector.name,
                "fingerprint": detector.fingerprint,
                "settings": asdict(detector.model_config),
                "provenance": detector.provenance,
            },
            "data": portable(detector.data_config),
            "device": str(detector.device),
            "precision": detector.precision,
            "compiled": detector.compiled,
            "protocol": asdict(self.protocol),
            "scores": list(self.scores),
            "postprocess": self.scorer.postprocess,
            "seed": self.scorer.seed,
            "thresholds": self.thresholds,
            "cases": {"evaluated": len(self.subjects), "failed": self.failed},
        }


def _healthy_thresholds(pooled: ScoreHistogram) -> Thresholds:
    def at(fraction: float) -> float:
        return max(pooled.false_positive_threshold(fraction), -1.0)

    named = {healthy_name(fraction): at(fraction) for fraction in FALSE_POSITIVE_FRACTIONS}
    return Thresholds(named, tuple(sorted({at(fraction) for fraction in FROC_FRACTIONS})))


def _listed(cases: Sequence[Case]) -> list[str]:
    return [f"{case.dataset} {case.subject}" for case in cases]


def _names(cases: Sequence[Case]) -> dict[Case, str]:
    """Return each case's name: its subject, with the file where a set has several scans of the subject."""
    times = Counter((case.dataset, case.split, case.subject) for case in cases)
    return {
        case: case.subject
        if times[case.dataset, case.split, case.subject] == 1
        else f"{case.subject} {case.image.name}"
        for case in cases
    }


def message_of(case: Case, error: BaseException) -> str:
    """Return one line for a failed case; only an ``InputError`` names the file itself."""
    if isinstance(error, InputError):
        return str(error)
    what = " ".join(str(error).split()) or "no memory left"
    return f"{case.image}: {type(error).__name__}: {what}"
