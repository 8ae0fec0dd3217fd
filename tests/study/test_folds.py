"""Mean and deviation over folds."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest

from brainuad.study.folds import summarise_folds


def test_each_measure_has_its_mean_and_deviation_over_folds(tmp_path: Path) -> None:
    values = {0: (0.2, 0.5), 1: (0.4, math.nan), 3: (0.9, 0.7)}
    for fold, (precision, dice) in values.items():
        folder = tmp_path / f"fold{fold}" / "evaluation"
        folder.mkdir(parents=True)
        rows = [
            {"set": "MSLUB", "split": "test", "score": "l1", "space": "model", "threshold": None, "metric": metric,
             "mean": mean, "sd": 0.1, "n": 2}
            for metric, mean in (("average_precision", precision), ("best_dice", dice))
        ]  # fmt: skip
        pd.DataFrame(rows).to_csv(folder / "summary.csv", index=False)
    table = summarise_folds(tmp_path, [0, 1, 3]).set_index("metric")
    assert table.loc["average_precision", "mean"] == pytest.approx(0.5)
    assert table.loc["average_precision", "sd"] == pytest.approx(math.sqrt((0.09 + 0.01 + 0.16) / 2))
    assert (table.loc["best_dice", "mean"], table.loc["best_dice", "folds"]) == (pytest.approx(0.6), 2)
    written = pd.read_csv(tmp_path / "folds.csv")
    assert list(written["mean"]) == pytest.approx(list(table["mean"]))
