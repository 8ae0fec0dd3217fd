"""``brainuad zoo``."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from brainuad.cli import options
from brainuad.cli.app import app
from brainuad.console import exit_by_failures, show_messages

UNITS = {"s": 1, "m": 60, "h": 3600}


@app.command(short_help="Train and evaluate every method on the same scans.")
def zoo(
    data_dir: options.DataDir,
    output: options.Output,
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SETTING=VALUE]...",
            help="Settings of all trainings, as for `train`: datamodule.cfg.mode=t2 trainer.accelerator=cpu ...",
        ),
    ] = None,
    models: Annotated[list[str] | None, options.several("Models", "Default: all.")] = None,
    budget: Annotated[
        str, typer.Option(metavar="TIME", help="Wall-clock time of each training: 90s, 30m, 2h.")
    ] = "30m",
    seeds: Annotated[
        int, typer.Option(min=1, metavar="N", help="Number of trainings of each model, with different seeds.")
    ] = 1,
) -> None:
    """Train every model for the same time, evaluate all on the same scans, and show them on one page.

    The same command continues a run that was stopped.
    """
    from brainuad.experiment.overrides import UnknownName
    from brainuad.experiment.zoo import run_zoo
    from brainuad.registry import MODELS

    options.check_known("--models", models, MODELS)
    seconds = parse_budget(budget)
    show_messages()
    try:
        failed = run_zoo(
            data_dir,
            output,
            models=list(dict.fromkeys(models or MODELS)),
            seeds=range(1, seeds + 1),
            budget=seconds,
            settings=settings or (),
        )
    except UnknownName as error:
        raise typer.BadParameter(str(error), param_hint="SETTING=VALUE") from error
    print((output / "zoo.md").read_text(encoding="utf-8"), end="")
    print(f"\nPage: {output / 'zoo.html'}")
    exit_by_failures(sum(failed), len(failed))


def parse_budget(text: str) -> int:
    """Return the seconds of "90s", "30m" or "2h"."""
    match = re.fullmatch(r"([1-9]\d*)([smh])", text)
    if match is None:
        raise typer.BadParameter(f"{text!r} is no time such as 90s, 30m or 2h", param_hint="--budget")
    return int(match[1]) * UNITS[match[2]]
