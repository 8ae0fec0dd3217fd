"""The Typer application, where every command is registered, and the options of all commands."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from brainuad._version import __version__
from brainuad.console import Commands, set_verbosity

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 200},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"brainuad {__version__}")
        raise typer.Exit


@app.callback()
def brainuad(
    verbose: Annotated[
        bool,
        typer.Option("-v", "--verbose", help="Print more to stderr. These options may also stand after the command."),
    ] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print no progress and no warnings.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Print an error's traceback.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Where is this brain unlike a healthy one? Anomaly detection in brain MRI. Research use only."""
    set_verbosity(verbose, quiet)
    if debug:
        sys.excepthook = sys.__excepthook__
