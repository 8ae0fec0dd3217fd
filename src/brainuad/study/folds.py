"""Mean and deviation over the folds of a run, of what each fold's evaluation found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from brainuad.files import write_text
from brainuad.study.summary import KEYS

FOLDS_CSV = "folds.csv"


def summarise_folds(folder: Path, folds: Sequence[int]) -> pd.DataFrame:
    """Write ``folds.csv`` into a run: of each measure, mean and standard deviation over folds of the mean over scans.

    The folds share their test scans, so the deviation tells how much trainings differ, and not how much patients do:
    for that, ``evaluation/summary.csv`` of each fold has intervals.

    Args:
        folder: The run, with ``fold0/evaluation/summary.csv`` and so on.
        folds: Those that were evaluated.

    Returns:
        One row a set, split, score, space, threshold and measure: ``mean``, ``sd`` (of a sample) and ``folds``.
    """
    tables = [pd.read_csv(folder / f"fold{fold}" / "evaluation" / "summary.csv") for fold in folds]
    over = pd.concat(tables).groupby(KEYS, sort=False, dropna=False)["mean"].agg(["mean", "std", "count"])
    table = over.rename(columns={"std": "sd", "count": "folds"}).reset_index()
    write_text(folder / FOLDS_CSV, table.to_csv(index=False))
    return table
