"""``brainuad check``."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from brainuad.cli import options
from brainuad.cli.app import app
from brainuad.console import FAILED, progress


@app.command(short_help="Look for missing, damaged, duplicated and leaking scans.")
def check(
    data_dir: options.DataDir,
    modality: options.Modality = "t1",
    fold: Annotated[int | None, typer.Option(min=0, metavar="N", help="Check only this fold.")] = None,
    jobs: options.Jobs = 1,
    as_json: options.Json = False,
) -> None:
    """Look for missing, damaged, duplicated and leaking scans. Exits with 1 if there are errors."""
    from brainuad.data.check import check_data_dir
    from brainuad.data.packed import is_packed, read_packed

    with progress("Checking", None) as advance:
        problems = check_data_dir(
            data_dir, modality, fold, num_workers=jobs, progress=lambda done, total: advance(total=total)
        )
    errors = sum(problem.severity == "error" for problem in problems)
    if as_json:
        print(json.dumps([vars(problem) for problem in problems], indent=2))
    else:
        for problem in problems:
            print(problem)
        if is_packed(data_dir) and not errors:
            print(f"{data_dir}: {read_packed(data_dir)}")
        print(f"{errors} errors, {len(problems) - errors} warnings")
    if errors:
        raise typer.Exit(FAILED)
