"""Rows on disk as they come, so that a rerun skips what is done, and the tables at the end."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from brainuad.errors import InputError
from brainuad.evaluate.measures import MEASURES
from brainuad.evaluation import summarise
from brainuad.files import write_json, write_text

HEADLINE = ("auroc", "average_precision", "chance", "best_dice", "dice")
COLUMNS = ("set", "subject", "split", "score", "protocol", "status", "message", *MEASURES)


class Progress:
    """Finished work by key, one JSON object a line in a file that is only appended to.

    Args:
        path: The file; made with its folder when first written to.

    Raises:
        InputError: The file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, Any] = {}
        try:
            lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(path, f"cannot be read ({error})", "Remove it to start anew") from error
        for line in lines:
            try:
                entry = json.loads(line)
                self._known[entry["key"]] = entry["value"]
            except (ValueError, TypeError, LookupError):
                continue  # a line that was being written when the process died: its work is done again

    def get(self, key: str) -> Any:
        """Return what was stored under a key, None where nothing was."""
        return self._known.get(key)

    def put(self, key: str, value: Any) -> None:
        """Store a JSON value.

        Raises:
            InputError: The file cannot be written to.
        """
        self._known[key] = value
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Begin with a line break, in case the line before was cut off.
            with self.path.open("a", encoding="utf-8") as handle:
                handle.write("\n" + json.dumps({"key": key, "value": value}, allow_nan=False) + "\n")
        except OSError as error:
            raise InputError(
                self.path, f"cannot be written ({error.strerror})", "Choose another folder"
            ) from error


def key_of(*parts: Any) -> str:
    """Return a hash of JSON values: equal parts, equal key."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def without_nan(value: Any) -> Any:
    """Return a JSON value with None for every NaN, which JSON lacks."""
    if isinstance(value, Mapping):
        return {str(name): without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def to_table(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Return rows as a table with all columns, None as NaN, sorted by set, split, subject and score."""
    table = pd.DataFrame(list(rows), columns=list(COLUMNS))
    table[list(MEASURES)] = table[list(MEASURES)].astype(float)
    return table.sort_values(["set", "split", "subject"], ignore_index=True, kind="stable")


def summary_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return mean, sd, n and 95 % confidence interval of every measure, a row a set, split, score and measure.

    Measures that no case of the group has are left out.
    """
    rows = []
    done = table[table["status"] == "ok"]
    for (dataset, split, score), group in done.groupby(["set", "split", "score"], sort=False):
        for name in MEASURES:
            figures = summarise(group[name])
            if figures.n:
                rows.append(
                    {"set": dataset, "split": split, "score": score, "measure": name, **vars(figures)}
                )
    columns = ["set", "split", "score", "measure", "mean", "sd", "n", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def headline(table: pd.DataFrame) -> str:
    """Return the means of the most telling measures over test scans, a row a set and score."""
    done = table[(table["split"] == "test") & (table["status"] == "ok")]
    groups = done.groupby(["set", "score"], sort=False)
    means = groups[list(HEADLINE)].mean()
    means.insert(0, "scans", groups.size())
    return str(means.reset_index().to_string(index=False, float_format="{:.4f}".format, na_rep="-"))


def write_tables(output: Path, table: pd.DataFrame, about: Mapping[str, Any]) -> None:
    """Write ``cases.csv``, ``summary.csv`` and, last, ``summary.json``."""
    summary = summary_table(table)
    write_text(output / "cases.csv", table.to_csv(index=False))
    write_text(output / "summary.csv", summary.to_csv(index=False))
    figures: dict[str, Any] = {}
    for row in summary.to_dict("records"):
        place = figures.setdefault(row["set"], {}).setdefault(row["split"], {}).setdefault(row["score"], {})
        place[row["measure"]] = {name: row[name] for name in ("mean", "sd", "n", "low", "high")}
    write_json(output / "summary.json", without_nan({**about, "figures": figures}))
