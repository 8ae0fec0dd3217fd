"""What the commands share: errors as one line, a progress bar, exit codes, printing."""

from __future__ import annotations

import errno
import io
import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from typer.core import TyperGroup

from brainuad.errors import DeviceError, InputError, printable

logger = logging.getLogger("brainuad")
FAILED, SOME_FAILED, INTERRUPTED = 1, 3, 130
Advance = Callable[..., None]


class Commands(TyperGroup):
    """Commands whose expected errors end in one line on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; with ``--debug`` errors keep their traceback."""
        debug = ctx.params["debug"]
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            say("interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except (InputError, DeviceError) as error:
            if debug:
                raise
            say(f"error: {error}")
        except OSError as error:
            if debug or error.errno == errno.EPIPE:  # Typer ends quietly when nobody reads on
                raise
            where = f"{error.filename}: " if error.filename else ""
            say(f"error: {where}{error.strerror or error}")
        raise typer.Exit(FAILED)


def say(message: str) -> None:
    """Write one line to stderr."""
    print(f"brainuad: {message}", file=sys.stderr)


def report_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Report an error that nobody expected; for ``sys.excepthook``."""
    first_line = (str(error).splitlines() or [""])[0]
    say(f"internal error: {kind.__name__}: {first_line}")
    say("please report this with what `brainuad --debug ...` prints")


class _Stderr(logging.StreamHandler[Any]):
    """Writes to what stderr is when a message comes: what it was before may be closed by then."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def print_anything() -> None:
    """Escape what stdout and stderr cannot encode: file names may hold bytes that are no text."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def set_verbosity(verbose: bool, quiet: bool) -> None:
    """Send the package's messages to stderr, from warnings on or as asked for."""
    logging.basicConfig(format="brainuad: %(message)s", handlers=[_Stderr()], force=True)
    logger.setLevel(logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING)


def show_messages() -> None:
    """Show informative messages too, for a long command, unless the user asked for quiet."""
    if logger.level == logging.WARNING:
        logger.setLevel(logging.INFO)


def exit_by_failures(failed: list[bool]) -> None:
    """Exit with 1 if all failed, with 3 if some did."""
    if any(failed):
        raise typer.Exit(FAILED if all(failed) else SOME_FAILED)


def print_rows(rows: list[dict[str, Any]], as_json: bool) -> None:
    """Print rows as JSON or as tab-separated columns."""
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    print("\t".join(rows[0]))
    for row in rows:
        print("\t".join(printable(str(value)) for value in row.values()))


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Advance]:
    """Show a bar on stderr while someone watches.

    Yields:
        ``advance(message="", total=None, what=None)``: one more is done. A message is written to stderr, above
        the bar where there is one.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True, soft_wrap=True)
    quiet = not logger.isEnabledFor(logging.WARNING)
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)

        def advance(message: str = "", *, total: int | None = None, what: str | None = None) -> None:
            if message and not quiet:
                console.print(escape(message), highlight=False)
            if what is not None and what != bar.tasks[task].description:
                bar.reset(task, description=what)
            bar.update(task, advance=1, total=total)

        yield advance
