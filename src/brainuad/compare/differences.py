"""Paired differences between runs and scores: pairing the cases, and testing the differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from brainuad.compare.runs import Run
from brainuad.errors import InputError
from brainuad.evaluation import by_subject, holm, paired_difference, paired_permutation_test
from brainuad.study.tables import FAILED

SIMULATED = ("simulated", "semi-synthetic")  # word in the names of simulated data sets
METRICS = ("average_precision",)
NAMED = 5  # cases listed in a warning


@dataclass(frozen=True)
class Comparison:
    """One metric of two contestants, each a score of a run, on the same cases of one data set.

    Cases are paired and then averaged within subjects, because subjects are the unit of intervals and tests.

    Attributes:
        set: Data set, or "all real" or "all simulated".
        metric: Name, with its threshold after a colon where it needs one.
        contestant: Score that is compared.
        baseline: Score that it is compared with.
        subjects: Number of pairs; subjects with the same name count once.
        mean: Mean of the contestant.
        baseline_mean: Mean of the baseline.
        difference: Mean of contestant - baseline.
        low: Lower end of its 95 % BCa bootstrap interval over subjects; NaN for a single one.
        high: Upper end.
        larger: Pairs in which the contestant's value is the larger.
        smaller: Pairs in which it is the smaller.
        p: Two-sided p-value of the paired permutation test.
        p_holm: The same, adjusted by Holm's method for all comparisons shown together.
        undefined: Cases left out because the metric is undefined for one of the two.
        differences: ``(subject, difference)`` of every pair.
    """

    set: str
    metric: str
    contestant: str
    baseline: str
    subjects: int
    mean: float
    baseline_mean: float
    difference: float
    low: float
    high: float
    larger: int
    smaller: int
    p: float
    p_holm: float
    undefined: int
    differences: tuple[tuple[str, float], ...] = field(repr=False)

    def row(self) -> dict[str, Any]:
        """Return all fields but ``differences``, None where undefined."""
        return {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in vars(self).items()
            if name != "differences"
        }


@dataclass(frozen=True)
class Comparisons:
    """All comparisons of one call, and what they leave out."""

    rows: tuple[Comparison, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Contestant:
    """One score of one run: its rows of the compared split and space, and of failed cases, by data set."""

    label: str  # in tables
    measured: set[tuple[str, str]]  # metrics and their thresholds, "" for a metric without threshold
    by_set: dict[str, pd.DataFrame]

    def members(self, dataset: str) -> set[str]:
        """Return the evaluated cases of a data set, including failed ones."""
        return set(self.by_set[dataset]["case"]) if dataset in self.by_set else set()

    def failed(self, dataset: str) -> list[str]:
        """Return the cases of a data set that could not be scored."""
        rows = self.by_set.get(dataset)
        return [] if rows is None else sorted(set(rows["case"][rows["metric"] == FAILED]))

    def values(self, dataset: str, metric: str) -> tuple[dict[str, float], dict[str, str]]:
        """Return a metric by case, averaged over a case's seeds and folds, and the cases' subjects."""
        if dataset not in self.by_set:
            return {}, {}
        rows = self.by_set[dataset]
        rows = rows[rows["measure"] == metric]
        return by_subject(rows["case"].tolist(), rows["value"].tolist()), dict(rows[["case", "subject"]].to_numpy())


def _contestant(label: str, run: Run, score: str, split: str, space: str) -> _Contestant:
    table = run.table[(run.table["split"] == split) & run.table["score"].isin((score, ""))]
    failed = table["metric"] == FAILED
    measured = table[(table["space"] == space) & ~failed]
    named = measured["metric"].where(measured["threshold"] == "", measured["metric"] + ":" + measured["threshold"])
    rows = pd.concat([measured.assign(measure=named), table[failed].assign(measure=FAILED)])
    by_set = {str(dataset): of_set for dataset, of_set in rows.groupby("set", sort=False)}
    return _Contestant(label, set(zip(measured["metric"], measured["threshold"], strict=True)), by_set)


def compare_runs(
    runs: Sequence[Run],
    *,
    metrics: Sequence[str] = METRICS,
    scores: Sequence[str] = (),
    split: str = "test",
    space: str = "model",
) -> Comparisons:
    """Compare runs, or scores of runs, on the cases that they share.

    The first is the baseline. With several runs and no ``scores``, each common score is compared between the runs.
    With one run and no ``scores``, its scores are compared with its first. With ``scores``, every score of every run
    is compared with the first score of the first run.

    Cases are paired by data set and name. Where there are several real data sets, they are also pooled, and
    so are several simulated ones; real and simulated sets are never pooled together.

    Args:
        runs: From `read_runs`.
        metrics: Names, with a threshold after a colon where there are several: "dice:validation".
        scores: Scores to compare.
        split: "test", or "val" to choose a score.
        space: Grid of the measurements, "model" or "native".

    Raises:
        InputError: There is nothing to compare, or a metric or score is missing.
    """
    pairs = _pairs(runs, scores, split, space)
    warnings: list[str] = []
    rows: list[Comparison] = []
    for metric in [_with_threshold(metric, pairs, f"split {split!r}, {space} space") for metric in metrics]:
        for baseline, contestant in pairs:
            compared, said = _compare(baseline, contestant, metric)
            rows += compared
            warnings += [text for text in said if text not in warnings]
    if not scores and len(runs) > 1:
        rows, same = _without_equal(rows)
        warnings += [f"left out, as they are the same in both runs: {', '.join(same)}"] if same else []
    if not rows:
        why = "; ".join(warnings) or "no case has values of both"
        raise InputError(", ".join(metrics), f"nothing to compare: {why}", "Give runs on the same cases")
    adjusted = holm([row.p for row in rows])
    rows = [replace(row, p_holm=p) for row, p in zip(rows, adjusted, strict=True)]
    return Comparisons(tuple(rows), tuple(warnings))


def _pairs(runs: Sequence[Run], scores: Sequence[str], split: str, space: str) -> list[tuple[_Contestant, _Contestant]]:
    """Return pairs of (baseline, contestant)."""
    first, *others = runs
    wanted = list(dict.fromkeys(scores))
    shared = [score for score in first.scores if all(score in run.scores for run in others)]
    by_score = bool(others) and not wanted and bool(shared)
    if not by_score and not wanted and len(runs) > 1 and any(len(run.scores) > 1 for run in runs):
        raise InputError(others[0].folder, f"shares no score with {first.folder}", "Choose with --score")
    several = len({score for run in runs for score in wanted or run.scores}) > 1

    def contestant(run: Run, score: str) -> _Contestant:
        if score not in run.scores:
            raise InputError(run.folder, f"has no score {score!r}", f"It has {', '.join(run.scores)}")
        label = " · ".join(([run.name] if others else []) + ([score] if several else []))
        return _contestant(label, run, score, split, space)

    if by_score:
        first_ones = {score: contestant(first, score) for score in shared}
        return [(first_ones[score], contestant(run, score)) for score in shared for run in others]
    contestants = [contestant(run, score) for run in runs for score in wanted or run.scores]
    if len(contestants) < 2:
        raise InputError(first.folder, "has a single score", "Give a second run, or evaluate more scores")
    return [(contestants[0], other) for other in contestants[1:]]


def _with_threshold(metric: str, pairs: Sequence[tuple[_Contestant, _Contestant]], where: str) -> str:
    """Return a metric with the one threshold at which it was measured, "" for one that needs none."""
    name, _, threshold = metric.partition(":")
    measured = {found for pair in pairs for contestant in pair for found in contestant.measured}
    found = {at for known, at in measured if known == name}
    if not found:
        known = sorted({known for known, _ in measured})
        raise InputError(metric, f"was not measured in {where}", f"There are: {', '.join(known) or 'no measures'}")
    choices = ", ".join(f"{name}:{at}" for at in sorted(found) if at)
    if threshold and threshold not in found:
        raise InputError(metric, "was not measured at this threshold", f"There are: {choices or name}")
    if threshold or "" in found:
        return metric if threshold else name
    if len(found) > 1:
        raise InputError(metric, "was measured at several thresholds", f"Choose one of {choices}")
    return choices


def _compare(baseline: _Contestant, contestant: _Contestant, metric: str) -> tuple[list[Comparison], list[str]]:
    """Return the comparisons of two contestants, by data set and pooled, and warnings."""
    rows, warnings = [], []
    pooled: dict[str, list[tuple[str, float, float]]] = {"all real": [], "all simulated": []}
    sets, undefined = dict.fromkeys(pooled, 0), dict.fromkeys(pooled, 0)
    for dataset in dict.fromkeys([*baseline.by_set, *contestant.by_set]):
        warnings += _differing_cases(baseline, contestant, dataset)
        (ours, _), (theirs, subjects) = (one.values(dataset, metric) for one in (contestant, baseline))
        shared = sorted(ours.keys() & theirs.keys())
        common = contestant.members(dataset) & baseline.members(dataset)
        of_one = len((ours.keys() ^ theirs.keys()) & common)
        if not shared:
            continue
        pairs = [(subjects[case], ours[case], theirs[case]) for case in shared]
        rows.append(_comparison(dataset, metric, contestant, baseline, pairs, of_one))
        kind = "all simulated" if is_simulated(dataset) else "all real"
        pooled[kind] += pairs
        sets[kind] += 1
        undefined[kind] += of_one
    for kind, pairs in pooled.items():
        if sets[kind] > 1:
            rows.append(_comparison(kind, metric, contestant, baseline, pairs, undefined[kind]))
    return rows, warnings


def _differing_cases(baseline: _Contestant, contestant: _Contestant, dataset: str) -> list[str]:
    """Return warnings about cases that only one of two contestants has, or that failed."""
    said = []
    for one, other in ((baseline, contestant), (contestant, baseline)):
        missing = sorted(other.members(dataset) - one.members(dataset))
        if missing and not one.members(dataset):
            said.append(f"{one.label} has no cases of {dataset}, {other.label} has {len(missing)}")
        elif missing:
            said.append(f"{one.label} lacks {_listed(missing)} of {dataset}; compared on the others")
    return said + [
        f"{one.label} failed on {_listed(failed)} of {dataset}; compared on the others"
        for one in (baseline, contestant)
        if (failed := one.failed(dataset))
    ]


def is_simulated(dataset: str) -> bool:
    """Return whether a data set's name marks its lesions as simulated."""
    return any(word in dataset.lower() for word in SIMULATED)


def _listed(cases: Sequence[str]) -> str:
    more = f" and {len(cases) - NAMED} more" if len(cases) > NAMED else ""
    return f"{len(cases)} case{'s' * (len(cases) > 1)} ({', '.join(cases[:NAMED])}{more})"


def _comparison(
    dataset: str,
    metric: str,
    contestant: _Contestant,
    baseline: _Contestant,
    pairs: Sequence[tuple[str, float, float]],
    undefined: int,
) -> Comparison:
    subjects = [subject for subject, _, _ in pairs]
    ours = by_subject(subjects, [value for _, value, _ in pairs])
    theirs = by_subject(subjects, [value for _, _, value in pairs])
    a, b = list(ours.values()), list(theirs.values())
    difference = paired_difference(a, b)
    differences = tuple((subject, ours[subject] - theirs[subject]) for subject in ours)
    return Comparison(
        dataset,
        metric,
        contestant.label,
        baseline.label,
        len(differences),
        math.fsum(a) / len(a),
        math.fsum(b) / len(b),
        difference.mean,
        difference.low,
        difference.high,
        sum(value > 0 for _, value in differences),
        sum(value < 0 for _, value in differences),
        paired_permutation_test(a, b),
        math.nan,
        undefined,
        differences,
    )


def _without_equal(rows: Sequence[Comparison]) -> tuple[list[Comparison], list[str]]:
    """Return the rows of contestants that differ anywhere, and the labels of the others.

    Scores without a model are equal in every run; testing them would only weaken the adjustment of the others.
    """
    differing = {row.contestant for row in rows if row.larger or row.smaller}
    if not differing:
        return list(rows), []
    same = dict.fromkeys(row.contestant for row in rows if row.contestant not in differing)
    return [row for row in rows if row.contestant in differing], list(same)
