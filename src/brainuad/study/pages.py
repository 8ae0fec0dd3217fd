"""The summary as a page of Markdown and as LaTeX tables."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from brainuad.evaluation import CONTRAST_CLASSES, MIN_OVERLAP, SIZE_CLASSES
from brainuad.files import markdown_table
from brainuad.study.protocol import ANY, MODEL, NATIVE, ORACLE, THRESHOLD_MEANINGS, VALIDATION, healthy_name
from brainuad.study.tables import FEW, with_interval

Row = Mapping[str, Any]
LENIENT, STRICT = healthy_name(0.05), healthy_name(0.01)
# Of one set: heading, space, threshold, measure.
COLUMNS = (
    ("average precision", ANY, "average_precision"),
    ("chance", ANY, "chance"),
    ("times chance", ANY, "average_precision_ratio"),
    ("Dice, oracle", ANY, "best_dice"),
    ("Dice, validation", VALIDATION, "dice"),
    (f"Dice, {LENIENT}", LENIENT, "dice"),
    (f"Dice, {STRICT}", STRICT, "dice"),
)
HEALTHY_COLUMNS = (
    (f"% of brain above {LENIENT}", LENIENT, "above"),
    (f"% of brain above {STRICT}", STRICT, "above"),
    (f"components a scan at {STRICT}", STRICT, "false_positive_components"),
)
DIGITS = {"average_precision_ratio": 1, "chance": 4}  # others have 3
LESION_COLUMNS = {
    "sensitivity": "sensitivity",
    "precision": "precision",
    "f1": "F1",
    "false_positives_per_scan": "false positives a scan",
}


def markdown(summary: pd.DataFrame, about: Row) -> str:
    """Return the page ``summary.md`` of means over subjects and what goes into ``summary.json``."""
    model, protocol = about["model"], about["protocol"]
    text = [
        f"# Evaluation of {model['name']}",
        "Research use only; not for diagnosis.",
        f"brainuad {about['version']}, model {model['fingerprint']}, protocol {protocol['name']}, over "
        f"{'the whole grid' if protocol['whole_grid'] else 'brain voxels'}, "
        f"{'after' if about['postprocess'] else 'without'} erosion and median filter, seed {about['seed']}. "
        "Means over test scans with 95 % BCa bootstrap intervals over subjects.",
        *(f"Note: {note}." for note in about["notes"]),
        _thresholds(about),
    ]
    for dataset in about["figures"]:
        if "test" in about["figures"][dataset]:
            text += _set_page(summary, about, dataset)
    return "\n\n".join(part for part in text if part) + "\n"


def _thresholds(about: Row) -> str:
    lines = ["Thresholds, and what they were chosen on:", ""]
    lines += [f"- `{name}`: {meaning}" for name, meaning in THRESHOLD_MEANINGS.items()]
    for entry in about["thresholds"]:
        found = f"found on {len(entry['found_on'])} scans" if entry["thresholds"] else f"none: {entry.get('why')}"
        if entry["thresholds"] and entry["found_on"][0].startswith("the healthy"):
            found = f"found on {entry['found_on'][0]}"
        lines.append(f"- {entry['set']}, {entry['kind']}: {found}")
    return "\n".join(lines)


def _set_page(summary: pd.DataFrame, about: Row, dataset: str) -> list[str]:
    failed = [row["message"] for row in about["cases"]["failed"] if row["set"] == dataset and row["split"] == "test"]
    scores = [name for name in about["scores"] if name in about["figures"][dataset]["test"]]
    rows = _Lookup(summary, dataset)
    scans = max((rows.of(score, MODEL, ANY, "scan_score")["n"] for score in scores), default=0)
    chance = next((v for s in scores if not math.isnan(v := rows.of(s, MODEL, ANY, "chance")["mean"])), math.nan)
    text = [f"## {dataset}: {scans} test scans" + (f", {len(failed)} failed" if failed else "")]
    text += [f"- failed: {message}" for message in failed]
    if math.isnan(chance):
        return [*text, rows.table(scores, MODEL, HEALTHY_COLUMNS)]
    text.append(
        f"Mean of per-case values. Chance level of average precision {chance:.4f}."
        + (" `n_failed` and `mean_failed_as_0` in summary.csv count the failed scans." if failed else "")
    )
    text.append(rows.table(scores, MODEL, COLUMNS))
    if about["protocol"]["native"]:
        text.append("In native space (the grid of the image files), mean of per-case values:")
        text.append(rows.table(scores, NATIVE, COLUMNS))
    pooled = about["pooled"].get(dataset, {})
    text += ["Pooled over the voxels of all scans:", _pooled(pooled, scores)]
    if dataset in about["lesion_wise"]:
        text.append(_lesion_wise_text(about, dataset, scores))
    if about["protocol"]["distances"]:
        distances = tuple(
            (f"{what.upper()}, {at} (mm)", at, f"{what}_mm")
            for what in ("hd95", "assd")
            for at in (STRICT, VALIDATION, ORACLE)
        )
        text.append("Surface distances where something is predicted:")
        text.append(rows.table(scores, MODEL, distances, digits=1))
    detection = about["scan_auroc"].get(dataset)
    if detection:
        text.append(f"Scan-wise AUROC. {about['scan_auroc']['warning']}.")
        cells = [
            [score, with_interval(row | {"mean": row["value"], "n": min(row["anomalous"], row["healthy"])})]
            for score, row in detection.items()
        ]
        text.append(_table(["score", "AUROC of healthy test scans against these"], cells))
    return [*text, *_comparison_text(about, dataset), *_strata_text(about, dataset)]


def _pooled(pooled: Row, scores: Sequence[str]) -> str:
    over_all = {
        "average_precision": "average precision",
        "chance": "chance",
        "average_precision_ratio": "times chance",
        "auroc": "AUROC",
        "best_dice": "Dice, oracle (one threshold for all)",
    }
    named = (VALIDATION, LENIENT, STRICT)
    cells = []
    for score in scores:
        found = pooled.get(score, {}).get(MODEL)
        if found:
            row = [_number(found["any"][name], DIGITS.get(name, 3)) for name in over_all]
            cells.append([score, *row, *(_number(found.get(at, {}).get("dice")) for at in named)])
    return _table(["score", *over_all.values(), *(f"Dice, {at}" for at in named)], cells)


def _lesion_wise_text(about: Row, dataset: str, scores: Sequence[str]) -> str:
    by_score = about["lesion_wise"][dataset]
    parts = [
        "Lesion-wise: lesions and predictions are 26-connected components; a lesion is found if at least "
        f"{MIN_OVERLAP:.0%} of its voxels are predicted, and a predicted component is a false positive if less than "
        f"{MIN_OVERLAP:.0%} of its voxels are lesion."
    ]
    for at in (STRICT, VALIDATION, ORACLE):
        of_scores = {score: by_score[score][at] for score in scores if at in by_score.get(score, {})}
        if not of_scores:
            continue
        first = next(iter(of_scores.values()))
        heads = ["score", *LESION_COLUMNS.values()]
        cells = [[score, *_lesion_cells(row, LESION_COLUMNS)] for score, row in of_scores.items()]
        parts += [f"At {at} ({first['lesions']} lesions):", _table(heads, cells)]
        parts.append(_by_class(of_scores, "by_size", SIZE_CLASSES, LESION_COLUMNS))
        parts.append(_by_class(of_scores, "by_contrast", CONTRAST_CLASSES, {"sensitivity": "found"}))
    if dataset in about["froc"]:
        parts.append(
            "Sensitivity at false positives a scan (FROC), and the mean of these by volume and contrast of lesions:"
        )
        parts.append(_froc_table(about["froc"][dataset], scores))
    return "\n\n".join(part for part in parts if part)


def _by_class(of_scores: Row, what: str, classes: Sequence[str], columns: Mapping[str, str]) -> str:
    """Return figures of each class that any score has lesions or predictions of."""
    first = next(iter(of_scores.values()))
    present = [name for name in classes if any(name in row[what] for row in of_scores.values())]
    heads = [
        f"{title}, {name} (of {first[what].get(name, {}).get('lesions', 0)})" if column == "sensitivity"
        else f"{title}, {name}"
        for name in present
        for column, title in columns.items()
    ]  # fmt: skip
    cells = [
        [score, *(cell for name in present for cell in _lesion_cells(row[what].get(name, {}), columns))]
        for score, row in of_scores.items()
    ]
    return _table(["score", *heads], cells)


def _froc_table(curves: Row, scores: Sequence[str]) -> str:
    first = next(iter(curves.values()))
    of_class = [(what, name) for what in ("by_size", "by_contrast") for name in first[what]]
    cells = [
        [
            score,
            *map(_number, curve["at"].values()),
            _number(curve["mean"]),
            *(_number(curve[what][name]) for what, name in of_class),
        ]
        for score in scores
        if (curve := curves.get(score)) is not None
    ]
    return _table(["score", *first["at"], "mean", *(f"mean, {name}" for _, name in of_class)], cells)


def _lesion_cells(figures: Row, columns: Iterable[str]) -> list[str]:
    return [_number(figures.get(name)) for name in columns]


def _comparison_text(about: Row, dataset: str) -> list[str]:
    found = about["comparisons"].get(dataset)
    if not found or not found["against"] or found["against"][0]["n"] < FEW:
        return []
    heads = ["score", "difference", "p", "p, Holm"]
    cells = [
        [row["score"], with_interval(row, sign="+"), f"{row['p']:.4f}", f"{row['p_holm']:.4f}"]
        for row in found["against"]
    ]
    title = (
        f"Average precision of {found['best']} (the highest mean on these scans) less that of the score; paired "
        "permutation test, adjusted by Holm's method:"
    )
    return [title, _table(heads, cells)]


def _strata_text(about: Row, dataset: str) -> list[str]:
    of_set = [row for row in about["strata"] if row["set"] == dataset]
    rows = [row for row in of_set if row["measure"] == "average_precision"]
    chance = {(row["stratum"], row["level"]): row["mean"] for row in of_set if row["measure"] == "chance"}
    text = []
    for stratum in dict.fromkeys(row["stratum"] for row in rows):
        part = [row for row in rows if row["stratum"] == stratum]
        levels = {row["level"]: f"{row['n']} scans, chance {chance[stratum, row['level']]:.4f}" for row in part}
        by_score: dict[str, dict[str, str]] = {}
        for row in part:
            by_score.setdefault(row["score"], {})[row["level"]] = with_interval(row)
        heads = ["score", *(f"{level} ({what})" for level, what in levels.items())]
        cells = [[score, *(of.get(level, "-") for level in levels)] for score, of in by_score.items()]
        text += [f"Average precision by {stratum}:", _table(heads, cells)]
    return text


def latex_tables(summary: pd.DataFrame, about: Row) -> dict[str, str]:
    """Return a table a set with lesions, by file name without suffix; it needs the package booktabs."""
    found: dict[str, str] = {}
    for dataset in about["figures"]:
        scores = [name for name in about["scores"] if name in about["figures"][dataset].get("test", {})]
        rows = _Lookup(summary, dataset)
        for space in (MODEL, NATIVE):
            cells = rows.cells(scores, space, COLUMNS)
            if all(cell == "-" for row in cells for cell in row[1:]):
                continue
            name = re.sub(r"[^a-z0-9]+", "-", f"{dataset} {space}".lower()).strip("-")
            while name in found:
                name += "-2"
            scans = max((rows.of(score, space, ANY, "average_precision")["n"] for score in scores), default=0)
            title = f"% {dataset}, {space} space, {scans} scans: mean of per-case values, 95 % BCa intervals\n"
            table = pd.DataFrame(cells, columns=["score", *(column[0] for column in COLUMNS)])
            layout = "l" + "r" * len(COLUMNS)
            found[name] = title + table.to_latex(index=False, escape=True, column_format=layout)
    return found


class _Lookup:
    """Means over test scans of one set."""

    def __init__(self, summary: pd.DataFrame, dataset: str) -> None:
        chosen = summary[(summary["set"] == dataset) & (summary["split"] == "test")]
        keys = zip(*(chosen[name] for name in ("score", "space", "threshold", "metric")), strict=True)
        self._rows = dict(zip(keys, chosen.to_dict("records"), strict=True))

    def of(self, score: str, space: str, threshold: str, measure: str) -> Row:
        return self._rows.get((score, space, threshold, measure), {"mean": math.nan, "n": 0})

    def table(self, scores: Iterable[str], space: str, columns: Sequence[tuple[str, str, str]], digits: int = 3) -> str:
        """Return a table in Markdown: a row a score, a column for each of ``columns``."""
        heads = ["score", *(heading for heading, _, _ in columns)]
        return _table(heads, self.cells(scores, space, columns, digits))

    def cells(
        self, scores: Iterable[str], space: str, columns: Sequence[tuple[str, str, str]], digits: int = 3
    ) -> list[list[str]]:
        """Return a row a score: its name, and mean and interval of each column."""

        def cell(score: str, threshold: str, measure: str) -> str:
            decimals, factor = DIGITS.get(measure, digits), 100 if measure == "above" else 1
            return with_interval(self.of(score, space, threshold, measure), digits=decimals, factor=factor)

        return [[score, *(cell(score, threshold, measure) for _, threshold, measure in columns)] for score in scores]


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table without columns that are "-" throughout; nothing without rows."""
    shown = [i for i in range(len(heads)) if i == 0 or any(row[i] != "-" for row in rows)]
    picked = [[row[i] for i in shown] for row in (heads, *rows)]
    return markdown_table(picked[0], picked[1:]) if rows else ""
