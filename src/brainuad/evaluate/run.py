"""One evaluation run: measures of every case, thresholds before test cases, what is known taken from disk."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from brainuad._version import __version__
from brainuad.data.cohort import Case
from brainuad.data.loading import content_key
from brainuad.errors import InputError
from brainuad.evaluate.measures import Measures, case_facts, froc_counts, measure, model_space, native_space
from brainuad.evaluate.progress import Progress, key_of, read_histograms, without_nan, write_histograms
from brainuad.evaluate.protocol import (
    FROC_FRACTIONS,
    MODEL,
    VALIDATION,
    Protocol,
    Thresholds,
    healthy_name,
)
from brainuad.evaluate.ranks import Ranks
from brainuad.evaluate.scorer import CASE_ERRORS, ScoredCase, Scorer
from brainuad.evaluate.tables import Pools, Subject, case_rows, failed_row, wide
from brainuad.evaluation import (
    FALSE_POSITIVE_FRACTIONS,
    ScoreHistogram,
    ThresholdCurve,
    empty_histogram,
)
from brainuad.modelfile import portable
from brainuad.scoring.atlas import HealthyStatistics, base_of

Row = dict[str, Any]
HEALTH = "health.safetensors"
MIN_HEALTHY = 3  # scans to compare with, for scores relative to health


@dataclass(frozen=True, eq=False)
class _Result:
    """What was found of one case: measures by score and space, counts by "space score"."""

    facts: dict[str, float]
    measures: dict[str, dict[str, Measures]]
    froc: dict[str, dict[str, Any]]
    histograms: dict[str, ScoreHistogram]


@dataclass
class Run:
    """One call of ``evaluate_cases``; where ranks share it, the first comes to know all results."""

    scorer: Scorer
    scores: tuple[str, ...]
    protocol: Protocol
    output: Path
    healthy: list[Case]
    report: Callable[[Case, str], None]
    on_scored: Callable[[ScoredCase], None]
    ranks: Ranks = field(default_factory=Ranks)
    rows: list[Row] = field(default_factory=list)
    thresholds: list[Row] = field(default_factory=list)  # and what they were found on
    failed: list[Row] = field(default_factory=list)
    pools: Pools = field(default_factory=Pools)
    subjects: dict[tuple[str, str, str], Subject] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.progress = Progress(self.output / "progress.jsonl", self.ranks.number)
        fingerprint, scorer = self.scorer.detector.fingerprint, self.scorer
        self.key = key_of(__version__, fingerprint, asdict(self.protocol), scorer.seed, scorer.postprocess)
        self._contents: dict[Case, str] = {}
        carried = scorer.detector.health.fingerprint if scorer.detector.health else ""
        self.health_key = key_of(self.key, [self.content(case) for case in self.healthy], carried)

    def evaluate(self, cases: Sequence[Case]) -> None:
        """Measure validation and test cases; healthy validation cases come first."""
        self.names = _names(cases)
        self.share_health()
        known = self.ranks.agreed(self.healthy_thresholds())
        for dataset in dict.fromkeys(case.dataset for case in cases):
            members = [case for case in cases if case.dataset == dataset]
            thresholds = self.ranks.agreed(self.set_thresholds(dataset, members, known))
            tests = [case for case in members if case.split == "test"]
            for case, found in self.each_measured(tests, thresholds):
                self.pools.add(case, found.histograms, found.froc)
            # pathological validation cases without annotation set no threshold
            others = [c for c in members if c.split != "test" and c.lesion is None and c.label != 0]
            for _ in self.each_measured(others, known):
                pass

    def each_measured(
        self, cases: Sequence[Case], thresholds: Mapping[str, Thresholds]
    ) -> Iterator[tuple[Case, _Result]]:
        """Yield the measures of those cases that can be scored.

        Ranks divide the cases; then the first yields all of them, and the others none.
        """
        if self.ranks.count > 1:
            for case in self.ranks.share(cases):
                with suppress(*CASE_ERRORS):  # the first tries again, and reports
                    self.result(case, thresholds)
            self.ranks.wait()
            if not self.ranks.first:
                return
            self.progress.read()
        for case in cases:
            found = self.measured(case, thresholds)
            if found is not None:
                yield case, found

    def healthy_thresholds(self) -> dict[str, Thresholds]:
        """Return the thresholds that fractions of healthy brain exceed."""
        nothing = dict.fromkeys(self.scores, Thresholds())
        pooled = {name: empty_histogram() for name in self.scores}
        used = []
        for case, found in self.each_measured(self.healthy, nothing):
            used.append(case)
            for name in self.scores:
                pooled[name] += found.histograms[f"{MODEL} {name}"]
        entry: Row = {"set": "all", "kind": "false-positive fraction of healthy brain"}
        if used:
            thresholds = {name: _healthy_thresholds(pooled[name]) for name in self.scores}
            entry["found_on"] = _listed(used)
        else:
            thresholds = {name: self.calibrated(name) for name in self.scores}
            if any(thresholds[name].named for name in self.scores):
                entry["found_on"] = ["the healthy scans that the model was calibrated on"]
        found_any = any(thresholds[name].named for name in self.scores)
        self.note(entry, {name: dict(thresholds[name].named) for name in self.scores} if found_any else None)
        return thresholds

    def calibrated(self, name: str) -> Thresholds:
        """Return the thresholds that came with the model, none where they are of other settings."""
        calibration = self.scorer.detector.calibration
        if calibration is None or self.protocol.shared_noise:
            return Thresholds()
        if calibration.postprocess is not self.scorer.postprocess:
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
        """Return what is known and the threshold of the best pooled Dice on a set's annotated validation cases."""
        annotated = [case for case in cases if case.split == "val" and case.lesion is not None]
        pooled = {name: empty_histogram() for name in self.scores}
        used = []
        for case, found in self.each_measured(annotated, known):
            used.append(case)
            for name in self.scores:
                pooled[name] += found.histograms[f"{MODEL} {name}"]
        best = {name: self.best_threshold(pooled[name]) for name in self.scores} if used else {}
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

    def best_threshold(self, pooled: ScoreHistogram) -> float:
        """Return the threshold of the best pooled Dice; NaN if no case has a lesion on the grid."""
        if self.protocol.greedy_threshold:
            lesion, healthy = (np.repeat(pooled.scores, n) for n in (pooled.lesion, pooled.healthy))
            return ThresholdCurve(lesion, healthy).greedy_best_dice()[1]
        threshold = pooled.best_dice()[1]
        return -1.0 if threshold == -math.inf else threshold  # below every map

    def note(self, entry: Row, found: dict[str, dict[str, float]] | None) -> None:
        """Remember thresholds and what they were found on, or why there are none."""
        entry.setdefault("found_on", [])
        if found is None:
            entry["why"] = (
                "no validation case of this kind could be used: nothing is measured at this threshold"
            )
        self.thresholds.append({**entry, "thresholds": found})

    def measured(self, case: Case, thresholds: Mapping[str, Thresholds]) -> _Result | None:
        """Return a case's measures, from an earlier run if they are known; None if it cannot be scored."""
        message, found = "", None
        try:
            found = self.result(case, thresholds)
        except CASE_ERRORS as error:
            message = _message(case, error)
        if case in self.names:  # not a healthy scan of a set that was not chosen
            name = self.names[case]
            self.subjects[case.dataset, case.split, name] = Subject.of(case)
            if found is None:
                self.failed.append(
                    {"set": case.dataset, "case": name, "split": case.split, "message": message}
                )
                self.rows.append(failed_row(case, name, message))
            else:
                self.rows += case_rows(case, name, found.facts, found.measures)
        self.report(case, message)
        return found

    def result(self, case: Case, thresholds: Mapping[str, Thresholds]) -> _Result:
        """Return what is known of a case, and measure what is not."""
        keys = {name: self.case_key(case, name, thresholds[name]) for name in self.scores}
        facts_key = self.case_key(case, "", Thresholds())
        entries = {name: entry for name, key in keys.items() if (entry := self.progress.get(key)) is not None}
        histograms: dict[str, ScoreHistogram] = {}
        for file in dict.fromkeys(entry["histograms"] for entry in entries.values()):
            histograms |= read_histograms(self.output / "histograms" / file)
        missing = [name for name in self.scores if name not in entries or f"{MODEL} {name}" not in histograms]
        facts = self.progress.get(facts_key)
        if missing or facts is None:
            self.know_health(missing)
            scored = self.scorer.score(case, missing)
            file = f"{key_of(*(keys[name] for name in missing))}.npz"
            facts, fresh, counts = self.measure_scored(scored, thresholds, file)
            write_histograms(self.output / "histograms" / file, counts)
            self.progress.put(facts_key, without_nan(facts))
            for name in missing:
                self.progress.put(keys[name], without_nan(fresh[name]))
            entries |= fresh
            histograms |= counts
            self.on_scored(scored)
        return _Result(
            facts,
            {name: entries[name]["measures"] for name in self.scores},
            {name: entries[name]["froc"] for name in self.scores if entries[name]["froc"] is not None},
            histograms,
        )

    def measure_scored(
        self, scored: ScoredCase, thresholds: Mapping[str, Thresholds], file: str
    ) -> tuple[dict[str, float], dict[str, Row], dict[str, ScoreHistogram]]:
        """Return a scored case's facts, its entries by score, and its counts by "space score"."""
        spacing = self.scorer.detector.data_config.rescaleFactor
        model = model_space(scored.prepared, self.protocol, spacing, cleaned=self.scorer.postprocess)
        spaces = [model]
        if self.protocol.native:
            spaces.append(native_space(scored.prepared, model))
        entries: dict[str, Row] = {}
        histograms = {}
        for name, anomaly in scored.maps.items():
            at, measures, froc = thresholds[name], {}, None
            for space in spaces:
                measures[space.name], counts = measure(space, anomaly, self.protocol, at)
                histograms[f"{space.name} {name}"] = counts
            if self.protocol.lesion_wise and at.froc and scored.prepared.case.split == "test":
                froc = froc_counts(model, anomaly, at)
            entries[name] = {"measures": measures, "froc": froc, "histograms": file}
        return case_facts(model, scored.reconstruction), entries, histograms

    def draw_montages(self, table: pd.DataFrame, summary: Mapping[str, Any]) -> None:
        """Draw each set's best, median and worst case by its best score, where colours have a meaning."""
        from brainuad.evaluate.figures import draw_montage, file_name, telling_cases

        healthy = summary["thresholds"][0]["thresholds"] or {}
        cases = {(case.dataset, name): case for case, name in self.names.items() if case.split == "test"}
        test = wide(table, split="test")
        for dataset, compared in summary["comparisons"].items():
            score = compared["best"]
            if not healthy.get(score):
                continue
            for kind, (name, precision) in telling_cases(test, dataset, score).items():
                self.know_health([score])
                scored = self.scorer.score(cases[dataset, name], [score])
                title = f"{kind} of {dataset}: {name} · average precision {precision:.3f}"
                path = self.output / "figures" / f"{file_name(dataset, kind)}.png"
                draw_montage(scored, score, healthy[score], path, title)

    def know_health(self, names: Sequence[str]) -> None:
        """Have the statistics of healthy scans ready if any of ``names`` needs them."""
        relative = [name for name in self.scores if base_of(name) is not None]
        if self.scorer.statistics is not None or not set(relative) & set(names):
            return
        carried = self.scorer.detector.health is not None  # then the model's own will do
        if (carried and len(self.healthy) < MIN_HEALTHY) or self.load_health(relative):
            return
        self.scorer.learn_health(self.healthy, relative)
        if self.scorer.statistics is None:
            if carried:
                return
            fault = f"of {len(self.healthy)} healthy validation scans fewer than {MIN_HEALTHY} could be used"
            raise InputError(", ".join(relative), fault, "Look at these scans, or choose other scores")
        scans = [self.healthy.index(case) for case in self.scorer.healthy]
        about = json.dumps({"key": self.health_key, "scans": scans})
        self.scorer.statistics.save(self.output / HEALTH, about)

    def load_health(self, relative: Sequence[str]) -> bool:
        """Take the statistics of healthy scans that an earlier run, or the first rank, has left, if any."""
        with suppress(InputError):  # missing, or damaged: it is made again
            statistics, about = HealthyStatistics.load(self.output / HEALTH)
            stored = json.loads(about)
            wanted = {base_of(name) for name in relative}
            if stored["key"] == self.health_key and wanted <= set(statistics.sums):
                self.scorer.statistics = statistics
                self.scorer.healthy = [self.healthy[index] for index in stored["scans"]]
                return True
        return False

    def share_health(self) -> None:
        """Have the first of several ranks learn from healthy scans, which all have reconstructed before."""
        relative = [name for name in self.scores if base_of(name) is not None]
        if self.ranks.count == 1 or not relative or self.ranks.agreed(self.load_health(relative)):
            return
        for case in self.ranks.share(self.healthy):
            with suppress(*CASE_ERRORS):
                self.scorer.score(case, ())  # loaded and reconstructed, into the cache
        self.ranks.wait()
        if self.ranks.first:
            with suppress(InputError):  # too few: every case will say so
                self.know_health(relative)
        self.ranks.wait()

    def content(self, case: Case) -> str:
        """Return a key that changes with a case's files and their place on the grid."""
        if case not in self._contents:
            try:
                self._contents[case] = content_key(case, self.scorer.detector.data_config)
            except InputError as error:
                self._contents[case] = str(error)
        return self._contents[case]

    def case_key(self, case: Case, name: str, thresholds: Thresholds) -> str:
        """Return a key that changes with whatever could change what is measured of a case's score."""
        values = without_nan(asdict(thresholds))
        health = self.health_key if name and base_of(name) is not None else ""
        return key_of(
            self.key, case.dataset, case.subject, case.split, self.content(case), name, values, health
        )

    def about(self) -> Row:
        """Return what made the results, for ``summary.json``."""
        detector = self.scorer.detector
        return {
            "version": __version__,
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "numpy": np.__version__,
            },
            "model": {
                "name": detector.name,
                "fingerprint": detector.fingerprint,
                "settings": asdict(detector.model_config),
                "provenance": detector.provenance,
            },
            "data": portable(detector.data_config),
            "device": str(detector.device),
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
    """Return what each case is called: its subject, and its file too where a set has several scans of a subject."""
    times: dict[tuple[str, str, str], int] = {}
    for case in cases:
        key = (case.dataset, case.split, case.subject)
        times[key] = times.get(key, 0) + 1
    return {
        case: case.subject
        if times[case.dataset, case.split, case.subject] == 1
        else f"{case.subject} {case.image.name}"
        for case in cases
    }


def _message(case: Case, error: BaseException) -> str:
    """Return one line for a failed case; only an ``InputError`` names the file itself."""
    if isinstance(error, InputError):
        return str(error)
    what = " ".join(str(error).split()) or "no memory left"
    return f"{case.image}: {type(error).__name__}: {what}"
