"""``brainuad compare``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from brainuad.cli import options
from brainuad.cli.app import app
from brainuad.console import logger


@app.command(short_help="Compare evaluations, or the scores of one evaluation, case by case.")
def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Output folders of `brainuad evaluate`, the baseline first.")
    ],
    output: options.Output,
    metric: Annotated[
        list[str] | None,
        options.several("Measure to compare, perhaps at a threshold: dice:validation", "Default: average_precision."),
    ] = None,
    score: Annotated[list[str] | None, options.several("Scores to compare, the baseline first")] = None,
    split: options.Split = "test",
    space: Annotated[str, options.one_of(("model", "native"), "Grid of the measurements to compare.")] = "model",
    as_json: options.Json = False,
) -> None:
    """Compare evaluations, or the scores of one, case by case: paired differences, intervals, p-values and a page."""
    from brainuad.compare import as_table, compare_runs, read_runs, write_comparisons
    from brainuad.compare.differences import METRICS

    evaluated = read_runs(runs)
    options.check_known("--metric", metric, (name for run in evaluated for name in run.metrics()))
    options.check_known("--score", score, (name for run in evaluated for name in run.scores))
    found = compare_runs(evaluated, metrics=metric or METRICS, scores=score or (), split=split, space=space)
    for text in found.warnings:
        logger.warning("%s", text)
    page = write_comparisons(output, evaluated, found, split=split, space=space)
    if as_json:
        about = {
            "runs": [{"name": run.name, "folder": str(run.folder)} for run in evaluated],
            "split": split,
            "space": space,
            "warnings": list(found.warnings),
            "comparisons": [row.row() for row in found.rows],
        }
        print(json.dumps(about, indent=2, allow_nan=False))
        return
    print(as_table(found))
    print(f"Table: {output / 'compare.csv'}; page: {page}")
