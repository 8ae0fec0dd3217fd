"""A command that is killed, however often, and run again writes what it writes when it is left alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from disturbed import Ended, Kill, run
from outputs import differences, left_behind, outputs

pytestmark = pytest.mark.faults

COMMANDS = ("score", "calibrate", "prepare", "evaluate", "train")
KILLS = int(os.environ.get("KILLS", 200))
SEED = int(os.environ.get("SEED", 0))


def share(name: str) -> int:
    """The kills of a command, of those of all."""
    return len(range(COMMANDS.index(name), KILLS, len(COMMANDS)))


@pytest.mark.parametrize("name", COMMANDS)
def test_killed_and_run_again(
    name: str,
    commands: dict[str, Any],
    undisturbed: Callable[[str], tuple[Ended, dict[str, Any]]],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    alone, expected = undisturbed(name)
    draw, killed, rounds = Random(f"{SEED} {name}"), 0, 0
    while killed < share(name):
        folder, history = tmp_path / str(rounds), []
        for _ in range(draw.randint(1, min(3, share(name) - killed))):
            kill = Kill.drawn(draw, alone)
            ended = run(commands[name](folder), folder, kill)
            history.append((kill, ended.code))
            if ended.code != -9:  # it was done before
                alone = ended if len(history) == 1 else alone  # the machine is faster now
                break
            killed += 1
        last = run(commands[name](folder), folder)
        assert last.code == 0, (history, last.said)
        assert differences(outputs(folder), expected) == [], history
        assert left_behind(folder) == [], history
        rounds += 1
    record_property("kills", killed)
    print(f"{name}: {killed} kills in {rounds} rounds, each alike; alone {alone.seconds:.1f} s")
