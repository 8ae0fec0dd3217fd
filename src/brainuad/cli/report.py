"""``brainuad report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from brainuad.cli.app import app


@app.command(short_help="Write report.html from the files of `brainuad score`.")
def report(folder: Annotated[Path, typer.Argument(metavar="DIR", help="Output folder of `brainuad score`.")]) -> None:
    """Write report.html, a page that shows scored scans, from their result files. No scan is scored again."""
    from brainuad.report.page import build_report

    print(build_report(folder))
