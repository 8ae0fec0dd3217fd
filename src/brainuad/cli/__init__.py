"""The command line. A command parses its arguments, makes one call and prints. It imports slow modules itself.

Results go to stdout, progress and warnings to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 some cases
failed, 130 interrupted.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys

import typer

from brainuad.cli import (  # noqa: F401  (each registers its command)
    calibrate,
    check,
    compare,
    demo,
    evaluate,
    models,
    pack,
    prepare,
    report,
    score,
    scores,
    simulate,
    sweep,
    train,
    zoo,
)
from brainuad.cli.app import app
from brainuad.console import print_anything, report_bug
from brainuad.processes import keep_freed_memory

__all__ = ["app", "main"]


def main() -> None:
    """Run the program ``brainuad``."""
    sys.excepthook = report_bug
    # Threads that wait by spinning keep the processor from other work. PyTorch reads this when it is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    print_anything()
    keep_freed_memory()
    gc.set_threshold(10_000)  # a fifth of the time that imports take is a search for garbage, which they do not make
    atexit.register(gc.freeze)  # spares the last garbage collection, half a second
    typer.main.get_command(app)(prog_name="brainuad")
