"""Made-up tables of runs, as `brainuad evaluate` writes them, and the command that compares them."""

import numpy as np
import pandas as pd
from typer.testing import CliRunner

from brainuad.cli import app
from brainuad.study.tables import COLUMNS

CASES = {"MSLUB": 12, "Lesions": 9, "simulated stroke": 10, "simulated ms": 10}
THRESHOLDS = ("healthy@0.01", "validation", "oracle")


def rows(seed=0, gain=0.0, scores=("ssim_ensemble",), cases=CASES, split="test"):
    """Yield rows as `brainuad evaluate` writes them; the second score is better by 0.1."""
    for dataset, count in cases.items():
        for case in range(count):
            rng = np.random.default_rng([seed, case, len(dataset)])
            for rank, score in enumerate(scores):
                label = {"set": dataset, "case": f"{dataset[:1]}{case:03}", "split": split, "score": score}
                ap = 0.3 + 0.02 * case + gain + 0.1 * rank + rng.normal(0, 0.03)
                for space in ("model", "native"):
                    value = ap if space == "model" else ap / 2
                    yield {**label, "space": space, "metric": "average_precision", "value": value}
                for at in THRESHOLDS:
                    yield {**label, "space": "model", "threshold": at, "metric": "dice", "value": ap / 3}


def write_run(folder, table):
    folder.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(table, columns=list(COLUMNS))
    table["subject"] = table["subject"].fillna(table["case"])  # a case each
    table.to_csv(folder / "cases.csv", index=False)
    return folder


def values(folder, dataset, score="ssim_ensemble", metric="average_precision", space="model"):
    table = pd.read_csv(folder / "cases.csv")
    chosen = (table["set"] == dataset) & (table["score"] == score) & (table["space"] == space)
    return table[chosen & (table["metric"] == metric)].groupby("case")["value"].mean()


def run_command(*arguments):
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])
