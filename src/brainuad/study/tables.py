"""The tidy table of all measures."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from brainuad.data.cohort import Case
from brainuad.errors import InputError
from brainuad.evaluation import Froc, ScoreHistogram
from brainuad.study.measures import Measures
from brainuad.study.protocol import ANY, MODEL

COLUMNS = ("set", "case", "subject", "split", "score", "space", "threshold", "metric", "value", "message")
FAILED = "failed"
FEW = 3  # with fewer subjects no interval is shown
Row = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """Whose a case is, and the strata it belongs to.

    Attributes:
        name: The unit of intervals and tests.
        annotated: There is a drawn lesion.
        healthy: Neither lesion nor label.
        age: In years, or None.
        extra: Further columns of the manifest.
    """

    name: str
    annotated: bool
    healthy: bool
    age: float | None
    extra: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, case: Case) -> Subject:
        """Return a case's."""
        annotated = case.lesion is not None
        return cls(case.subject, annotated, case.healthy, case.age, case.extra)


@dataclass
class Pools:
    """Counts of all annotated test scans of a set together.

    Attributes:
        histograms: By set, space and score.
        froc: By set and score.
    """

    histograms: dict[tuple[str, str, str], ScoreHistogram] = field(default_factory=dict)
    froc: dict[tuple[str, str], Froc] = field(default_factory=dict)

    def add(self, case: Case, histograms: Mapping[str, ScoreHistogram], froc: Mapping[str, Mapping[str, Any]]) -> None:
        """Add a case's counts: histograms by "space score", FROC counts by score."""
        if case.lesion is None:
            return
        for name, histogram in histograms.items():
            space, score = name.split(" ", 1)
            key = (case.dataset, space, score)
            known = self.histograms.get(key)
            self.histograms[key] = histogram if known is None else known + histogram
        for score, values in froc.items():
            curve, before = Froc.from_dict(values), self.froc.get((case.dataset, score))
            self.froc[case.dataset, score] = curve if before is None else before + curve


def case_rows(
    case: Case, name: str, facts: Mapping[str, float], measures: Mapping[str, Mapping[str, Measures]]
) -> list[Row]:
    """Return the tidy rows of a case; undefined measures are left out.

    ``facts`` do not depend on the score, ``measures`` are by score, space, threshold and measure.
    """

    rows: list[tuple[str, str, str, str, float | None]] = [
        ("", "", ANY, metric, value) for metric, value in facts.items()
    ]
    for score, spaces in measures.items():
        for space, thresholds in spaces.items():
            for threshold, values in thresholds.items():
                rows += [(score, space, threshold, metric, value) for metric, value in values.items()]
    identity = _identity_of(case, name)
    return [
        {**identity, **dict(zip(COLUMNS[4:-1], row, strict=True)), "message": ""}
        for row in rows
        if row[-1] is not None and not math.isnan(row[-1])
    ]


def failed_row(case: Case, name: str, message: str) -> Row:
    """Return the row of a case that could not be scored."""
    empty = dict.fromkeys(("score", "space", "threshold"), "")
    return _identity_of(case, name) | empty | {"metric": FAILED, "value": 1.0, "message": message}


def _identity_of(case: Case, name: str) -> Row:
    return {"set": case.dataset, "case": name, "subject": case.subject, "split": case.split}


class Rows:
    """Tidy rows while they gather: each text is kept once and stands as a number, so a row takes some 30 bytes."""

    def __init__(self) -> None:
        self._texts: dict[str, dict[str, int]] = {name: {} for name in COLUMNS if name != "value"}
        # of cases, subjects and messages there may be more than 16 bits count
        self._codes = {name: array("I" if name in ("case", "subject", "message") else "H") for name in self._texts}
        self._values = array("d")

    def add(self, rows: Iterable[Row]) -> None:
        """Add rows at the end."""
        for row in rows:
            for name, texts in self._texts.items():
                self._codes[name].append(texts.setdefault(row[name], len(texts)))
            self._values.append(row["value"])

    def table(self) -> pd.DataFrame:
        """Return the rows as a table, sorted by set, split and case, whose texts are categories."""
        columns: dict[str, Any] = {}
        for name, texts in self._texts.items():
            alphabetical = sorted(texts)
            order = np.argsort(np.array([texts[text] for text in alphabetical], dtype=np.intp))
            codes = order.astype(np.min_scalar_type(-len(order) - 1))[np.asarray(self._codes[name])]
            columns[name] = pd.Categorical.from_codes(codes, alphabetical)
        order = np.lexsort([columns[name].codes for name in ("case", "split", "set")])
        columns = {name: column[order] for name, column in columns.items()}
        columns["value"] = np.asarray(self._values)[order]
        return pd.DataFrame(columns, columns=list(COLUMNS), copy=False)


def spelled_out(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with plain texts in place of categories."""
    return table.astype({name: str for name in COLUMNS if name != "value"})


def read_cases_csv(path: str | Path) -> pd.DataFrame:
    """Return the table that was written to ``cases.csv``; empty names stay empty.

    Raises:
        InputError: The file is missing, damaged or of another layout.
    """
    remedy = "Give output folders of `brainuad evaluate`"
    try:
        # Read as text: a case may be called "007" or "NA".
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", remedy) from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise InputError(path, f"is no table ({' '.join(str(error).split())})", remedy) from error
    if missing := [column for column in COLUMNS if column not in table]:
        anew = f"{remedy}; one of an older version is run again"
        raise InputError(path, f"lacks the columns {', '.join(missing)}", anew)
    values = pd.to_numeric(table["value"], errors="coerce").astype(float)
    for line in np.flatnonzero(~np.isfinite(values)):
        raise InputError(path, f"holds {table['value'][line]!r} as a value in line {line + 2}", remedy)
    return table.assign(value=values)


def failures(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of failed cases."""
    return table[table["metric"] == FAILED]


def wide(table: pd.DataFrame, *, split: str | None = None, space: str = MODEL) -> pd.DataFrame:
    """Return one row a case and score, a column a measure: "dice@validation", "average_precision".

    Args:
        table: The tidy table.
        split: Only this one.
        space: "model" or "native".
    """
    chosen = table[(table["space"] == space) & ((table["split"] == split) | (split is None))]
    keys, measures = ["set", "split", "case", "score"], ["metric", "threshold"]
    rows, columns = (chosen.groupby(names, sort=False, observed=True).ngroup().to_numpy() for names in (keys, measures))
    labels = chosen.drop_duplicates(keys)[keys].astype(str).reset_index(drop=True)
    pairs = chosen.drop_duplicates(measures)[measures].itertuples(index=False)
    names = [metric if threshold == ANY else f"{metric}@{threshold}" for metric, threshold in pairs]
    values = np.full((len(labels), len(names)), math.nan)
    values[rows, columns] = chosen["value"]
    return pd.concat([labels, pd.DataFrame(values, columns=names)], axis=1)


HEADLINE = {  # short, for a terminal
    "average_precision": "AP",
    "chance": "chance",
    "average_precision_ratio": "ratio",
    "best_dice": "Dice best",
    "dice@validation": "val.",
    "dice@healthy@0.01": "1 %",
    "above@healthy@0.01": "above 1 %",
}
LEGEND = """

AP: average precision; ratio: to chance. Dice at the best threshold of the scan, of the
validation scans, and at the one that 1 % of healthy voxels exceed; above: fraction of the brain.
"""


def headline(table: pd.DataFrame) -> str:
    """Return the means of the most telling measures over test scans that were scored, a row a set and score."""
    cases = wide(table, split="test")
    groups = cases.groupby(["set", "score"], sort=False)
    means = groups[[name for name in HEADLINE if name in cases]].mean().rename(columns=HEADLINE)
    means.insert(0, "scans", groups.size())
    return str(means.reset_index().to_string(index=False, float_format="{:.3f}".format, na_rep="-")) + LEGEND.rstrip()


def with_interval(found: Mapping[str, Any], *, digits: int = 3, sign: str = "", factor: float = 1) -> str:
    """Return a mean and its interval as text: "0.412 (0.334 to 0.501)"; the mean alone of few, "-" of none.

    Args:
        found: mean, n, low and high, as a `brainuad.evaluation.Summary` has them.
        digits: Decimals.
        sign: "+" to show that too.
        factor: 100 for percent.
    """
    if not found["n"]:
        return "-"
    alone = found["n"] < FEW or found["low"] is None or math.isnan(found["low"])
    values = [found[name] for name in (("mean",) if alone else ("mean", "low", "high"))]
    mean, *ends = (f"{factor * value:{sign}.{digits}f}" for value in values)
    return f"{mean} ({' to '.join(ends)})" if ends else mean
