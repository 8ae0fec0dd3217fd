"""Read the output folders of `brainuad evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from brainuad.errors import InputError
from brainuad.study.tables import FAILED, read_cases_csv


@dataclass(frozen=True, eq=False)
class Run:
    """One evaluation.

    Attributes:
        name: Unique among the compared runs: the folder's name, with as many parent folders as needed.
        folder: Folder of its files.
        table: ``cases.csv``: one row a case, score, space, threshold and metric.
    """

    name: str
    folder: Path
    table: pd.DataFrame

    @property
    def scores(self) -> list[str]:
        """The evaluated scores, in the order of the file."""
        return [score for score in self.table["score"].unique() if score]

    def metrics(self) -> list[str]:
        """Return the measured metrics, each name alone and with every threshold: "dice", "dice:validation"."""
        measured = self.table[self.table["metric"] != FAILED]
        pairs = measured[["metric", "threshold"]].drop_duplicates().itertuples(index=False)
        names = [name for metric, at in pairs for name in (metric, f"{metric}:{at}" if at else metric)]
        return list(dict.fromkeys(names))


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Read the output folders of `brainuad evaluate`.

    Raises:
        InputError: A folder is given twice, or its ``cases.csv`` is missing, damaged or of another layout.
    """
    paths = [Path(folder) for folder in folders]
    places = [path.resolve() for path in paths]
    for index, place in enumerate(places):
        if place in places[:index]:
            raise InputError(paths[index], "is given twice", "Give each run once")
    return [
        Run(name, path, read_cases_csv(path / "cases.csv")) for name, path in zip(_names(places), paths, strict=True)
    ]


def _names(places: Sequence[Path]) -> list[str]:
    """Return the shortest path endings that are all different."""
    longest = max((len(place.parts) for place in places), default=0)
    for length in range(1, longest + 1):
        names = ["/".join(place.parts[-length:]) for place in places]
        if len(set(names)) == len(names):
            return names
    return [str(place) for place in places]
