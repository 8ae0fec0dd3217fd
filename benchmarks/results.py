"""Print the tables of docs/results.md from an evaluation of the shipped model.

    brainuad evaluate lite-t1 COHORTS/scans/manifest.csv -o OUT --scores SCORES
    python benchmarks/results.py OUT

Means over test scans with 95 % BCa bootstrap intervals over subjects; differences are paired by subject.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from brainuad.demo import SCORES
from brainuad.evaluation import summarise

REFERENCE_SCORE = "ssim_ensemble"


def main() -> None:
    """Print the tables."""
    cases = pd.read_csv(Path(sys.argv[1]) / "cases.csv")
    test = cases[(cases["split"] == "test") & (cases["status"] == "ok")]
    scores = [score for score in SCORES if score in set(test["score"])]
    for name, group in test[test["chance"].notna()].groupby("set", sort=False):
        scans = group["subject"].nunique()
        chance = group.drop_duplicates("subject")["chance"].mean()
        print(f"\n### {name}: {scans} scans, chance level of average precision {chance:.3f}\n")
        columns = {
            "average_precision": "average precision",
            "best_dice": "best Dice",
            "dice": "Dice, validation threshold",
            "dice_fpr0.01": "Dice, 1 % healthy threshold",
        }
        print(f"| score | {' | '.join(columns.values())} |")
        print("|---|---|---|---|---|")
        for score in scores:
            rows = group[group["score"] == score]
            print(f"| {score} | " + " | ".join(interval(rows[column]) for column in columns) + " |")
        print(f"\nPaired difference in average precision, {REFERENCE_SCORE} minus the score:\n")
        print("| score | difference |\n|---|---|")
        by_score = group.pivot(index="subject", columns="score", values="average_precision")
        for score in scores:
            if score != REFERENCE_SCORE:
                print(f"| {score} | {interval(by_score[REFERENCE_SCORE] - by_score[score], signed=True)} |")
    healthy = test[test["chance"].isna()]
    print(f"\n### Healthy: {healthy['subject'].nunique()} scans\n")
    print(
        "| score | brain above the 5 % threshold of validation scans | above the 1 % threshold |\n|---|---|---|"
    )
    for score in scores:
        rows = healthy[healthy["score"] == score]
        print(
            f"| {score} | {interval(100 * rows['above_fpr0.05'])} % | {interval(100 * rows['above_fpr0.01'])} % |"
        )


def interval(values: pd.Series, *, signed: bool = False) -> str:
    """Return mean and interval as text; with fewer than three scans, the values themselves."""
    known = values.dropna()
    sign = "+" if signed else ""
    if known.empty:
        return "-"
    if len(known) < 3:
        return ", ".join(f"{value:{sign}.3f}" for value in known)
    found = summarise(known.to_numpy())
    return f"{found.mean:{sign}.3f} ({found.low:{sign}.3f} to {found.high:{sign}.3f})"


if __name__ == "__main__":
    main()
