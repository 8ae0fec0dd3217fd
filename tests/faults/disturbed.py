"""Commands in processes of their own that are killed, at a moment or just before they change a file."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import typer

# A server that has imported what commands import is forked for each: it saves the seconds of a start.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "brainuad.cli",
        "brainuad.scan.calibrate",
        "brainuad.experiment.run",
        "brainuad.prepare",
        "brainuad.report.page",
        "brainuad.scan.run",
        "brainuad.study.figures",
        "brainuad.train",
    ]
)
_CHANGES = {"os.mkdir": 0, "os.remove": 0, "os.rename": 1, "os.rmdir": 0}  # event to which argument is the path
_LONG = 300  # seconds after which a command hangs


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: Exit code, or the negative number of the signal that killed it.
        seconds: How long it ran.
        changes: Files that its first process opened to write, renamed or removed in its folder.
        bytes: In the files of its folder.
        said: What it wrote to stdout and stderr.
    """

    code: int
    seconds: float
    changes: int
    bytes: int
    said: str


@dataclass(frozen=True)
class Kill:
    """When and whom to kill: after some seconds, or before a change of files, counted from 1."""

    seconds: float | None = None
    change: int = 0
    whole_group: bool = True

    @classmethod
    def drawn(cls, draw: Random, undisturbed: Ended) -> Kill:
        """Draw one within the run of a command that was left alone."""
        if draw.random() < 0.5:
            return cls(change=draw.randint(1, max(undisturbed.changes, 1)))
        return cls(seconds=draw.uniform(0, undisturbed.seconds), whole_group=draw.random() < 0.5)


class Running:
    """A command that has been started.

    Args:
        words: What follows ``brainuad``.
        folder: Its outputs and cache go there.
        kill_before: The change of a file in ``folder`` before which it kills itself, counted from 1; 0 for none.
    """

    def __init__(self, words: list[Any], folder: Path, kill_before: int = 0) -> None:
        self.folder, self.changes = folder, SERVER.RawValue("i")
        self.said = folder.with_name(f"{folder.name}.txt")
        self.said.unlink(missing_ok=True)
        self.started = time.monotonic()
        given = ([str(word) for word in words], str(folder), str(self.said), self.changes, kill_before)
        self.process = SERVER.Process(target=_command, args=given)
        self.process.start()

    def wait(self, seconds: float = _LONG) -> bool:
        """Wait for it, and say whether it has ended."""
        self.process.join(seconds)
        return self.process.exitcode is not None

    def kill(self, *, whole_group: bool) -> None:
        """Kill it, with the processes it has started or without."""
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)
        if whole_group:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def ended(self) -> Ended:
        """Return how it ended; a process that outlives it is an error."""
        if not self.wait():
            self.kill(whole_group=True)
            raise TimeoutError(f"hangs: {self.folder}")
        seconds = time.monotonic() - self.started
        deadline = time.monotonic() + 60
        while _has_members(self.process.pid):
            if time.monotonic() > deadline:
                self.kill(whole_group=True)
                raise TimeoutError(f"a process outlived its command: {self.folder}")
            time.sleep(0.02)
        size = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        said = self.said.read_text() if self.said.exists() else ""
        return Ended(self.process.exitcode, seconds, self.changes.value, size, said)


def run(words: list[Any], folder: Path, kill: Kill | None = None) -> Ended:
    """Run a command, and kill it if it has not ended by then."""
    running = Running(words, folder, kill.change if kill else 0)
    if kill and kill.seconds is not None and not running.wait(kill.seconds):
        running.kill(whole_group=kill.whole_group)
    return running.ended()


def _has_members(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _command(words: list[str], folder: str, said: str, changes: Any, kill_before: int) -> None:
    os.setsid()
    out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
    from brainuad.cli import app

    def watch(event: str, given: tuple[Any, ...]) -> None:
        if event == "open":
            path, changing = given[0], isinstance(given[2], int) and given[2] & (os.O_WRONLY | os.O_RDWR)
        else:
            path, changing = given[_CHANGES[event]] if event in _CHANGES else "", event in _CHANGES
        if changing and str(path).startswith(f"{folder}/"):
            changes.value += 1
            if changes.value == kill_before:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    typer.main.get_command(app)(words, prog_name="brainuad")
