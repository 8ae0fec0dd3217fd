"""The accuracy of a model under the paper's settings and under its own: every score, pathology and threshold.

    python benchmarks/accuracy.py MODEL OUT MANIFEST [MANIFEST ...] [--preset paper|own]

A manifest is what ``brainuad simulate`` or ``benchmarks/make_cohorts.py`` wrote. Each is evaluated into
``OUT/<preset>/<name of the manifest's folder>`` (see ``brainuad evaluate``; a rerun continues there), by the presets:

- ``paper``: one noise draw at t = 500, SSIM ensemble (and L1);
- ``own``: the noise levels that the model comes with; each score also relative to health (``_z``).

Then the tables of docs/results.md are printed from all that lies in OUT. Test scans only; thresholds are those of
validation scans. Simulated and real scans are never pooled.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from brainuad.data.cohort import leak_free, manifest_cases
from brainuad.detector import load_model
from brainuad.evaluate import OURS, evaluate_cases

PRESETS = {
    "paper": ({"noise_ensemble": False, "test_timesteps": 500, "noise_draws": 1}, ("ssim_ensemble", "l1")),
    "own": ({}, ("l1", "ssim_ensemble", "l1_ssim", "l1_z", "ssim_ensemble_z", "l1_ssim_z")),
}
COLUMNS = ("average_precision", "best_dice", "dice@healthy@0.01", "dice@validation")


def main() -> None:
    """Evaluate, then print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("output", type=Path)
    parser.add_argument("manifests", nargs="+", type=Path)
    parser.add_argument("--preset", choices=PRESETS, action="append")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    detector = load_model(arguments.model, "cpu")
    for preset in arguments.preset or PRESETS:
        changes, scores = PRESETS[preset]
        for manifest in arguments.manifests:
            cases = leak_free(manifest_cases(manifest))
            output = arguments.output / preset / manifest.parent.name
            evaluate_cases(
                detector.with_settings(**changes),
                cases,
                output,
                scores=scores,
                protocol=replace(OURS, native=False),
                progress=lambda case, message: print(case.dataset, case.subject, message, file=sys.stderr),
            )
    print_tables(arguments.output)


def print_tables(output: Path) -> None:
    """Print a table a data set: scores by measure, means over test scans with 95 % intervals."""
    frames = []
    for path in sorted(output.glob("*/*/summary.csv")):
        table = pd.read_csv(path).fillna({"threshold": ""})
        frames.append(table.assign(preset=path.parts[-3]))
    table = pd.concat(frames)
    table = table[(table["split"] == "test") & (table["space"] == "model")]
    at = table["threshold"].where(table["threshold"] == "", "@" + table["threshold"])
    table["column"] = table["metric"] + at
    for dataset, rows in table.groupby("set", sort=False):
        chance = rows.loc[rows["column"] == "chance", "mean"]
        if chance.empty:
            continue
        n = int(rows.loc[rows["column"] == "average_precision", "n"].max())
        print(f"\n### {dataset}: {n} scans, chance {chance.iloc[0]:.4f}\n")
        print(f"| preset | score | {' | '.join(COLUMNS)} |\n|---|---|{'---|' * len(COLUMNS)}")
        for (preset, score), figures in rows.groupby(["preset", "score"], sort=False):
            by_column = figures.set_index("column")
            print(f"| {preset} | {score} | {' | '.join(cell(by_column, name) for name in COLUMNS)} |")


def cell(figures: pd.DataFrame, name: str) -> str:
    """Return "mean (low to high)", or a dash."""
    if name not in figures.index:
        return "-"
    row = figures.loc[name]
    return f"{row['mean']:.3f} ({row['low']:.3f} to {row['high']:.3f})"


if __name__ == "__main__":
    main()
