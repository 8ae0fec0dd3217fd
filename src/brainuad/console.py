"""Common parts of the commands: one-line errors, a progress bar, exit codes, printing."""

from __future__ import annotations

import errno
import io
import json
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType
from typing import Any

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from brainuad.errors import DeviceError, InputError, printable

logger = logging.getLogger("brainuad")
FAILED, SOME_FAILED, INTERRUPTED = 1, 3, 130
_TALKATIVE = ("pydicom", "highdicom")
_ANYWHERE = ("-v", "--verbose", "-q", "--quiet", "--debug")  # options of all commands


class Commands(TyperGroup):
    """Commands whose expected errors end in one line on stderr and an exit code."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Accept the options of all commands at any position before ``--``."""
        end = args.index("--") if "--" in args else len(args)
        first = [word for word in args[:end] if word in _ANYWHERE]
        rest = [word for word in args[:end] if word not in _ANYWHERE]
        return super().parse_args(ctx, [*first, *rest, *args[end:]])

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
            if debug or error.errno == errno.EPIPE:  # Typer ends quietly when the reader of a pipe has closed it
                raise
            where = f"{error.filename}: " if error.filename else ""
            say(f"error: {where}{error.strerror or error}")
        raise typer.Exit(FAILED)


def say(message: str) -> None:
    """Write one line to stderr."""
    print(f"brainuad: {message}", file=sys.stderr)


def announce(message: str) -> None:
    """Write one line to stderr before a long step, unless the user asked for quiet."""
    if logger.isEnabledFor(logging.WARNING):
        say(message)


def report_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Report an unexpected error; for ``sys.excepthook``."""
    first_line = (str(error).splitlines() or [""])[0]
    say(f"internal error: {kind.__name__}: {first_line}")
    say("please report this with what `brainuad --debug ...` prints")


class _Stderr(logging.StreamHandler[Any]):
    """Writes to the present stderr: the one of the time of set-up may be closed."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def print_anything() -> None:
    """Escape characters that stdout and stderr cannot encode: file names may hold bytes that are not text."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def set_verbosity(verbose: bool, quiet: bool) -> None:
    """Send the package's messages to stderr: warnings by default, more or fewer if asked.

    What pydicom and highdicom say about odd values, once a file, is told only if more is asked for.
    """
    handler = _Stderr()
    if not verbose:
        handler.addFilter(lambda record: record.name.partition(".")[0] not in _TALKATIVE)
        for name in _TALKATIVE:
            warnings.filterwarnings("ignore", module=name)
    logging.basicConfig(format="brainuad: %(message)s", handlers=[handler], force=True)
    logger.setLevel(logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING)


def show_messages() -> None:
    """Show informative messages, too, unless the user asked for quiet; for long commands."""
    if logger.level == logging.WARNING:
        logger.setLevel(logging.INFO)


def exit_by_failures(failed: int, total: int) -> None:
    """Exit with 1 if all failed, with 3 if some did."""
    if failed:
        raise typer.Exit(FAILED if failed >= total else SOME_FAILED)


def exit_by_status(rows: Sequence[Mapping[str, Any]]) -> None:
    """Exit with 1 if all scans failed, with 3 if some did, by the column "status" of their rows."""
    exit_by_failures(sum(row["status"] == "failed" for row in rows), len(rows))


def print_rows(rows: list[dict[str, Any]], as_json: bool, *, shown: Sequence[str] = ()) -> None:
    """Print rows as JSON or as tab-separated columns; on a terminal as a table.

    Args:
        rows: Values by column, the same columns in all.
        as_json: Print JSON.
        shown: Columns of the table where there are too many for a terminal. Empty means all.
    """
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    if (console := Console()).is_terminal:
        cells = [[printable(str(row[name])) for name in shown or row] for row in rows]
        table = Table(box=None, pad_edge=False)
        for name in shown or rows[0]:
            table.add_column(name.replace("_", " "), overflow="fold")
        # names tell the rows apart and are never folded
        table.columns[0].min_width = max(cell_len(texts[0]) for texts in cells)
        for texts in cells:
            table.add_row(*map(escape, texts))
        console.print(table)
        return
    print("\t".join(rows[0]))
    for row in rows:
        print("\t".join(printable(str(value)) for value in row.values()))


class Bar:
    """Progress on stderr: a bar on a terminal, and messages everywhere."""

    def __init__(self, what: str, total: int | None) -> None:
        console = Console(stderr=True, soft_wrap=True)
        self._quiet = not logger.isEnabledFor(logging.WARNING)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _TimeLeft(),
            TextColumn("{task.fields[stage]}", markup=False),  # file names may look like markup
        )
        watched = console.is_terminal and not self._quiet
        self.shown = Progress(*columns, console=console, transient=True, disable=not watched)
        self._task = self.shown.add_task(what, total=total, stage="", skipped=0, last=0.0)

    def __call__(
        self, message: str = "", *, total: int | None = None, what: str | None = None, skipped: bool = False
    ) -> None:
        """Advance the bar by one.

        Args:
            message: Written to stderr, above the bar where there is one.
            total: Number of items.
            what: Name of the work; a new name starts a new bar.
            skipped: The item was finished before, so it does not count for the time left.
        """
        if message and not self._quiet:
            self.shown.console.print(escape(message), highlight=False)
        task = self.shown.tasks[self._task]
        if what is not None and what != task.description:
            self.shown.reset(self._task, description=what, skipped=0, stage="", last=0.0)
            skipped = True  # its own start is unknown: the clock starts anew with its end
        last = task.fields["last"] if skipped else task.elapsed or 0.0
        self.shown.update(self._task, advance=1, total=total, skipped=task.fields["skipped"] + skipped, last=last)

    def case(self, case: Any, message: str) -> None:
        """Advance by a case of a cohort, and tell the message of one that failed."""
        self(f"failed: {case.dataset} {case.subject}: {message}" if message else "")

    def stage(self, name: str) -> None:
        """Show the present step."""
        self.shown.update(self._task, stage=name)


class _TimeLeft(ProgressColumn):
    """Time left, at the mean pace of the finished items; rich's own column forgets items of over 30 s."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        """Return "0:01:30 left", or nothing before the first item is finished."""
        last = task.fields["last"]
        done = task.completed - task.fields["skipped"]
        seconds = time_left(last, done, task.remaining, since=(task.elapsed or 0) - last)
        return Text("" if seconds is None else f"{timedelta(seconds=round(seconds))} left")


def time_left(took: float, done: float, left: float | None, *, since: float) -> float | None:
    """Return the seconds that the remaining items take at the pace of the finished ones; None if unknown.

    Args:
        took: Seconds from the start to the end of the last finished item.
        done: Number of finished items.
        left: Number of remaining items.
        since: Seconds since the end of the last finished item.
    """
    return None if left is None or done < 1 else max(0.0, took / done * left - since)


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Bar]:
    """Show a bar on stderr, if that is a terminal."""
    bar = Bar(what, total)
    with bar.shown:
        yield bar
