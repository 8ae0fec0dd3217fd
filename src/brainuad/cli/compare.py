"""``brainuad compare``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from brainuad.cli.app import app
from brainuad.cli.options import Json, Output, known, listed, one_of
from brainuad.console import logger


@app.command(short_help="Compare evaluations, or the scores of one evaluation, case by case.")
def compare(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Output folders of `brainuad evaluate`, the baseline first.")
    ],
    output: Output,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            metavar="NAME",
            help="Measure to compare, perhaps at a threshold: dice:validation. Default: average_precision.",
        ),
    ] = None,
    scores: Annotated[
        list[str] | None,
        typer.Option(
            "--score", metavar="NAME", help="Scores to compare, the baseline first; repeat the option or use commas."
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the cases to compare.", **one_of(("test", "val")))] = "test",
    space: Annotated[
        str, typer.Option(help="Grid of the measurements to compare.", **one_of(("model", "native")))
    ] = "model",
    as_json: Json = False,
) -> None:
    """Compare evaluations, or the scores of one, case by case: paired differences, intervals, p-values and a page."""
    from brainuad.compare import as_table, compare_runs, read_runs, write_comparisons
    from brainuad.compare.differences import METRICS

    evaluated = read_runs(runs)
    wanted = listed(metrics) or list(METRICS)
    known("--metric", listed(metrics) or [], list(dict.fromkeys(name for run in evaluated for name in run.metrics())))
    known("--score", listed(scores) or [], list(dict.fromkeys(name for run in evaluated for name in run.scores)))
    found = compare_runs(evaluated, metrics=wanted, scores=listed(scores) or (), split=split, space=space)
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
