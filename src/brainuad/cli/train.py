"""``brainuad train``."""

from __future__ import annotations

import typer

from brainuad.cli.app import app


@app.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
    short_help="Train a model, then evaluate it. `brainuad train --help` lists the settings.",
)
def train(ctx: typer.Context) -> None:
    """Train a model fold by fold, then evaluate it."""
    from brainuad.experiment.run import main as run_experiment

    raise typer.Exit(run_experiment(ctx.args))
