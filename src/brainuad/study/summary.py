"""From the measures of every case to figures over subjects: means with intervals, pooled figures, tests, strata."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from brainuad.evaluation import (
    CONTRAST_CLASSES,
    FALSE_POSITIVES_A_SCAN,
    SIZE_CLASSES,
    Froc,
    LesionCounts,
    by_subject,
    holm,
    paired_difference,
    paired_permutation_test,
    scan_auroc,
    size_class,
    summarise,
)
from brainuad.evaluation._arrays import ratio
from brainuad.study.protocol import ANY, BASELINES, MODEL, THRESHOLD_MEANINGS, VALIDATION, healthy_name
from brainuad.study.tables import FAILED, Pools, Subject, wide

Row = dict[str, Any]
Subjects = Mapping[tuple[str, str, str], Subject]
KEYS = ["set", "split", "score", "space", "threshold", "metric"]
SUMMARY_COLUMNS = [*KEYS, "mean", "sd", "n", "low", "high", "n_failed", "mean_failed_as_0"]
COUNTS = {"true_positives", "false_positives", "true_negatives", "false_negatives", "threshold"}
FAILED_AS_0 = ("average_precision", "dice", "best_dice", "recall", "lesion_sensitivity", "lesion_f1")
CLASSES = {"by_size": SIZE_CLASSES, "by_contrast": CONTRAST_CLASSES}
COUNTED = ("lesions", "lesions_found", "components", "components_confirmed")
SCAN_WARNING = (
    "Healthy and lesion scans may differ in scanner, site or age: scan-wise AUROC may measure that rather than lesions"
)

STRATA_MEASURES = ("average_precision", "chance", "best_dice", f"dice@{VALIDATION}", f"dice@{healthy_name(0.01)}")
AGE_EDGES = (40, 60)
AGE_CLASSES = ("< 40 years", "40-60 years", "> 60 years")
MOST_LEVELS = 8  # a column with more values than this, or than half its scans, is no stratum


def summarise_all(
    table: pd.DataFrame, scores: Sequence[str], pools: Pools, subjects: Subjects
) -> tuple[pd.DataFrame, Row]:
    """Return the table of means over subjects, and everything for ``summary.json``, of the tidy table."""
    summary = means(table, subjects)
    test = wide(table, split="test")
    lesion_ml = {
        (row.set, row.case): row.value
        for row in table[(table["metric"] == "lesion_ml") & (table["split"] == "test")].itertuples()
    }
    figures: Row = {
        "threshold_names": THRESHOLD_MEANINGS,
        "figures": nested(summary),
        "pooled": pooled(table, pools),
        "lesion_wise": lesion_wise(table),
        "froc": {
            dataset: {score: _froc(curve) for (of, score), curve in pools.froc.items() if of == dataset}
            for dataset in dict.fromkeys(dataset for dataset, _ in pools.froc)
        },
        "scan_auroc": {"warning": SCAN_WARNING, **scan_detection(test, subjects)},
        "comparisons": comparisons(test, scores, subjects),
        "strata": strata(test, subjects, lesion_ml),
    }
    return summary, figures


def means(table: pd.DataFrame, subjects: Subjects) -> pd.DataFrame:
    """Return mean, sd, n and 95 % interval over subjects of every measure.

    ``n_failed`` counts the cases of the group that could not be scored; ``mean_failed_as_0`` is the mean if each of
    them with a drawn lesion had been worth 0, for measures of lesions of which that is the least.
    """
    failed: dict[tuple[str, str], list[Subject]] = defaultdict(list)
    for row in table[table["metric"] == FAILED].itertuples():
        failed[row.set, row.split].append(subjects[row.set, row.split, row.case])
    kept = table[~table["metric"].isin(COUNTS | {FAILED}) & ~table["metric"].str.endswith("]")]
    values, as_zero = {}, {}
    for keys, group in kept.groupby(KEYS, sort=False, observed=True):
        people = [subjects[keys[0], keys[1], case].name for case in group["case"]]
        of_cases = group["value"].tolist()
        values[keys] = np.array(list(by_subject(people, of_cases).values()))
        if keys[-1] in FAILED_AS_0:
            lost = [subject.name for subject in failed.get(keys[:2], ()) if subject.annotated]
            counted = by_subject([*people, *lost], [*of_cases, *[0.0] * len(lost)])
            as_zero[keys] = math.fsum(counted.values()) / len(counted)
    # Measures of as many subjects one after the other, for they share the bootstrap's draws.
    found = {keys: summarise(values[keys]) for keys in sorted(values, key=lambda keys: len(values[keys]))}
    rows = []
    for keys in values:
        row = {**dict(zip(KEYS, keys, strict=True)), **vars(found[keys])}
        row["n_failed"] = len(failed.get(keys[:2], ()))
        if keys in as_zero:
            row["mean_failed_as_0"] = as_zero[keys]
        rows.append(row)
    return pd.DataFrame(rows, columns=SUMMARY_COLUMNS)


def nested(summary: pd.DataFrame) -> Row:
    """Return the summary as ``figures[set][split][score][space][threshold][measure]``; "any" and "case" for none."""
    found: Row = {}
    for row in summary.to_dict("records"):
        node = found
        for key, empty in zip(KEYS, ("", "", "case", "case", "any"), strict=False):
            node = node.setdefault(row[key] or empty, {})
        figures = SUMMARY_COLUMNS[len(KEYS) :]
        node[row["metric"]] = {name: row[name] for name in figures if row[name] == row[name]}
    return found


def pooled(table: pd.DataFrame, pools: Pools) -> Row:
    """Return figures of all annotated test scans' voxels together: ``[set][score][space][threshold][measure]``.

    The average precision comes from binned scores; ``average_precision_bounds`` says between which values it lies.
    """
    found: Row = {}
    for (dataset, space, score), histogram in pools.histograms.items():
        precision, chance = histogram.average_precision(), histogram.chance
        best = histogram.best_dice()[0]
        found.setdefault(dataset, {}).setdefault(score, {})[space] = {
            "any": {
                "average_precision": precision,
                "average_precision_bounds": list(histogram.average_precision_bounds()),
                "average_precision_ratio": precision / chance if chance else math.nan,
                "chance": chance,
                "auroc": histogram.auroc(),
                "best_dice": best,
            }
        }
    for (dataset, score, space, threshold), counts in _sums(table, COUNTS - {"threshold"}).items():
        true, false, missed = (counts[name] for name in ("true_positives", "false_positives", "false_negatives"))
        node = found.setdefault(dataset, {}).setdefault(score, {}).setdefault(space, {})
        node[threshold] = {
            "dice": ratio(2 * true, 2 * true + false + missed),
            "precision": ratio(true, true + false),
            "recall": ratio(true, true + missed),
        }
    return found


def lesion_wise(table: pd.DataFrame) -> Row:
    """Return lesions found and false positives of all annotated test scans: ``[set][score][threshold]``.

    On the model's grid. By volume too, where a predicted component counts by its own; and by the lesions' contrast,
    which predictions have none of.
    """
    names = ("", *(f" [{name}]" for classes in CLASSES.values() for name in classes))
    found: Row = {}
    scans = _scans(table)
    for (dataset, score, space, threshold), sums in _sums(
        table, {f"{what}{name}" for what in COUNTED for name in names}
    ).items():
        if space != MODEL:
            continue
        n = scans[dataset, score]
        row = _lesion_figures(sums, "", n)
        row["by_size"] = {name: _lesion_figures(sums, f" [{name}]", n) for name in SIZE_CLASSES}
        by_contrast = {name: _lesion_figures(sums, f" [{name}]", n) for name in CONTRAST_CLASSES}
        row["by_contrast"] = {
            name: {what: figures[what] for what in ("lesions", "found", "sensitivity")}
            for name, figures in by_contrast.items()
        }
        for what in CLASSES:  # classes that nothing is of say nothing
            row[what] = {
                name: figures
                for name, figures in row[what].items()
                if figures["lesions"] or figures.get("false_positives_per_scan")
            }
        found.setdefault(dataset, {}).setdefault(score, {})[threshold] = row
    return found


def _lesion_figures(sums: Mapping[str, float], of_class: str, scans: int) -> Row:
    counts = LesionCounts(*(int(sums[f"{what}{of_class}"]) for what in COUNTED))
    return {
        "lesions": counts.lesions,
        "found": counts.found,
        "sensitivity": counts.sensitivity,
        "precision": counts.precision,
        "f1": counts.f1 if counts.lesions else math.nan,  # of a class that no lesion is of
        "false_positives_per_scan": counts.false_positives / scans,
    }


def _froc(curve: Froc) -> Row:
    """Return the sensitivity at false positives a scan, their mean, and the mean by size and contrast of lesions."""
    at = {f"{rate:g}": curve.sensitivity_at(rate) for rate in FALSE_POSITIVES_A_SCAN}
    means = {
        what: {name: mean for name in names if not math.isnan(mean := curve.mean_sensitivity(name=name))}
        for what, names in CLASSES.items()
    }
    return {"at": at, "mean": curve.mean_sensitivity(), **means}


def _sums(table: pd.DataFrame, metrics: set[str]) -> dict[tuple[str, str, str, str], dict[str, float]]:
    """Return sums over test cases of counts at thresholds, by set, score, space and threshold."""
    chosen = table[(table["split"] == "test") & table["metric"].isin(metrics) & (table["threshold"] != ANY)]
    keys = ["set", "score", "space", "threshold", "metric"]
    found: dict[tuple[str, str, str, str], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for (dataset, score, space, threshold, metric), value in (
        chosen.groupby(keys, sort=False, observed=True)["value"].sum().items()
    ):
        found[dataset, score, space, threshold][metric] = value
    return found


def _scans(table: pd.DataFrame) -> dict[tuple[str, str], int]:
    """Return how many annotated test scans were scored, by set and score."""
    chosen = table[(table["split"] == "test") & (table["metric"] == "chance") & (table["space"] == MODEL)]
    return {
        (str(dataset), str(score)): int(n)
        for (dataset, score), n in chosen.groupby(["set", "score"], observed=True).size().items()
    }


def scan_detection(test: pd.DataFrame, subjects: Subjects) -> Row:
    """Return how well the mean score of a scan tells each set's annotated scans from all healthy test scans.

    Of several scans of one subject the mean counts.
    """
    if "scan_score" not in test:
        return {}
    keys = zip(test["set"], test["split"], test["case"], strict=True)
    whose = np.array([subjects[key] for key in keys], dtype=object)
    ill = np.array([subject.annotated for subject in whose], dtype=bool)
    well = np.array([subject.healthy for subject in whose], dtype=bool)
    found: Row = {}

    def one_a_subject(chosen: np.ndarray) -> list[float]:
        names = [(dataset, subject.name) for dataset, subject in zip(test["set"][chosen], whose[chosen], strict=True)]
        return list(by_subject(names, test["scan_score"][chosen].tolist()).values())

    for (dataset, score), _ in test[ill].groupby(["set", "score"], sort=False):
        of_score = (test["score"] == score).to_numpy()
        others = one_a_subject(well & of_score)
        if others:
            result = scan_auroc(one_a_subject(ill & of_score & (test["set"] == dataset).to_numpy()), others)
            found.setdefault(dataset, {})[score] = vars(result)
    return found


def comparisons(test: pd.DataFrame, scores: Sequence[str], subjects: Subjects) -> Row:
    """Return paired differences in average precision: the best score of a set, less each other one.

    The best is that of the highest mean on these scans among scores that are no baseline. P-values are those of a
    permutation test, adjusted by Holm's method for the number of comparisons in the set.
    """
    found: Row = {}
    if "average_precision" not in test:
        return found
    for dataset, group in test.groupby("set", sort=False):
        people = {case: subjects[str(dataset), "test", case].name for case in group["case"]}
        per_case = group.pivot(index="case", columns="score", values="average_precision").dropna(how="all")
        if per_case.empty:
            continue
        values = per_case.groupby(people).mean()
        ours = [name for name in scores if name in values and name not in BASELINES] or list(values)
        best = max(ours, key=lambda name: values[name].mean())
        others = [name for name in scores if name in values and name != best]
        tested = [
            {"score": other, **vars(paired_difference(values[best], values[other]))}
            | {"p": paired_permutation_test(values[best], values[other])}
            for other in others
        ]
        for row, adjusted in zip(tested, holm([row["p"] for row in tested]), strict=True):
            del row["sd"]
            row["p_holm"] = adjusted
        found[str(dataset)] = {"best": best, "measure": "average_precision", "against": tested}
    return found


def strata(test: pd.DataFrame, subjects: Subjects, lesion_ml: Mapping[tuple[str, str], float]) -> list[Row]:
    """Return means of the main measures by site, age, lesion volume and whatever the manifest tells of few values."""
    rows: list[Row] = []
    measures = [name for name in STRATA_MEASURES if name in test]
    for dataset, group in test.groupby("set", sort=False):
        levels: dict[str, dict[str, str]] = defaultdict(dict)
        for case in dict.fromkeys(group["case"]):
            subject = subjects[str(dataset), "test", case]
            of_case = dict(subject.extra)
            if subject.age is not None:
                of_case["age"] = AGE_CLASSES[int(np.digitize(subject.age, AGE_EDGES))]
            if (str(dataset), case) in lesion_ml:
                of_case["lesion volume"] = SIZE_CLASSES[int(size_class(lesion_ml[str(dataset), case]))]
            for column, level in of_case.items():
                levels[column][case] = level
        for column, of_cases in levels.items():
            if not 2 <= len(set(of_cases.values())) <= min(MOST_LEVELS, len(of_cases) / 2):
                continue
            for (score, level), part in group.groupby(["score", group["case"].map(of_cases)], sort=False):
                people = [subjects[str(dataset), "test", case].name for case in part["case"]]
                for measure in measures:
                    figures = summarise(by_subject(people, part[measure].tolist()).values())
                    if figures.n:
                        keys = {"set": dataset, "stratum": column, "level": level, "score": score}
                        rows.append({**keys, "measure": measure, **vars(figures)})
    return rows


def curves(pools: Pools, points: int = 200) -> Row:
    """Return pooled precision-recall and FROC curves, small enough to draw from: ``[set][score]``."""
    found: Row = {}
    for (dataset, space, score), histogram in pools.histograms.items():
        if space == MODEL:
            recall, precision, threshold = histogram.precision_recall(points)
            found.setdefault(dataset, {}).setdefault(score, {})["precision_recall"] = {
                "recall": recall.tolist(),
                "precision": precision.tolist(),
                "threshold": np.maximum(threshold, -1.0).tolist(),
                "chance": histogram.chance,
            }
    for (dataset, score), curve in pools.froc.items():
        found.setdefault(dataset, {}).setdefault(score, {})["froc"] = {
            "threshold": curve.thresholds.tolist(),
            "false_positives_per_scan": curve.false_positives_a_scan().tolist(),
            "sensitivity": curve.sensitivity().tolist(),
        }
        for what, names in CLASSES.items():
            any_of = (name for name in names if not math.isnan(curve.sensitivity_at(math.inf, name)))
            found[dataset][score]["froc"][what] = {name: curve.sensitivity(name).tolist() for name in any_of}
    return found
