"""Folders that are full, read-only or gone, and clocks that go back: one clear error at most, then a rerun."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from disturbed import Ended, Kill, Running, run
from outputs import differences, left_behind, outputs

pytestmark = pytest.mark.faults

COMMANDS = ("score", "calibrate", "prepare", "evaluate", "train")
Undisturbed = Callable[[str], tuple[Ended, dict[str, Any]]]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system in memory, of 64 MB."""
    if not sys.platform.startswith("linux") or os.geteuid():
        pytest.skip("only root on Linux can mount a small disk")
    path = tmp_path / "disk"
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", path], check=False).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)


def remount(disk: Path, how: str) -> None:
    """Remount, as soon as nobody writes."""
    for _ in range(2000):
        if not subprocess.run(["mount", "-o", f"remount,{how}", disk], check=False, capture_output=True).returncode:
            return
        time.sleep(0.005)
    raise TimeoutError(f"{disk} is always busy")


def assert_one_clear_error(ended: Ended) -> None:
    """Refuse what the user cannot read. Scans that cannot be written each have a line of their own."""
    assert ended.code in (1, 3), ended.said
    assert "Traceback" not in ended.said, ended.said
    assert "internal error" not in ended.said, ended.said
    assert ended.said.count("brainuad: error: ") <= 1, ended.said
    assert "cannot be written" in ended.said or "No space left" in ended.said or "Read-only" in ended.said, ended.said


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk(name: str, share: float, commands: dict[str, Any], undisturbed: Undisturbed, disk: Path) -> None:
    """There is room for a share of what the command writes."""
    alone, expected = undisturbed(name)
    room = int(share * alone.bytes)
    free = shutil.disk_usage(disk).free
    with (disk / "ballast.log").open("wb") as ballast:
        ballast.write(bytes(free - room))
    assert_one_clear_error(run(commands[name](disk), disk))
    assert left_behind(disk) == []
    (disk / "ballast.log").unlink()
    again = run(commands[name](disk), disk)
    assert again.code == 0, again.said
    assert differences(outputs(disk), expected) == []
    assert left_behind(disk) == []


@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_that_may_only_be_read(name: str, commands: dict[str, Any], disk: Path) -> None:
    remount(disk, "ro")
    assert_one_clear_error(run(commands[name](disk), disk))
    assert list(disk.iterdir()) == []


@pytest.mark.parametrize("name", ["score", "evaluate"])  # `train` has its log open, so nobody can remount
def test_a_folder_that_may_only_be_read_from_some_moment_on(
    name: str, commands: dict[str, Any], undisturbed: Undisturbed, disk: Path
) -> None:
    alone, expected = undisturbed(name)
    running = Running(commands[name](disk), disk)
    wait_for_half(running, alone)
    remount(disk, "ro")
    assert_one_clear_error(running.ended())
    remount(disk, "rw")
    again = run(commands[name](disk), disk)
    assert again.code == 0, again.said
    assert differences(outputs(disk), expected) == []
    assert left_behind(disk) == []


@pytest.mark.parametrize("name", ["score", "evaluate", "train"])
def test_a_folder_that_vanishes(name: str, commands: dict[str, Any], undisturbed: Undisturbed, tmp_path: Path) -> None:
    alone, expected = undisturbed(name)
    folder = tmp_path / "run"
    running = Running(commands[name](folder), folder)
    wait_for_half(running, alone)
    (folder / "out").rename(tmp_path / "gone")
    ended = running.ended()
    assert ended.code in (0, 1, 3), ended.said
    assert "Traceback" not in ended.said, ended.said
    assert "internal error" not in ended.said, ended.said
    again = run(commands[name](folder), folder)
    assert again.code == 0, again.said
    assert differences(outputs(folder), expected) == []
    assert left_behind(folder) == []


@pytest.mark.parametrize("name", COMMANDS)
def test_a_clock_that_goes_back(name: str, commands: dict[str, Any], undisturbed: Undisturbed, tmp_path: Path) -> None:
    """What the killed run wrote is of next year to the second one."""
    alone, expected = undisturbed(name)
    folder = tmp_path / "run"
    assert run(commands[name](folder), folder, Kill(change=alone.changes // 2)).code == -9
    later = time.time() + 365 * 24 * 3600
    for path in folder.rglob("*"):
        os.utime(path, (later, later))
    again = run(commands[name](folder), folder)
    assert again.code == 0, again.said
    assert differences(outputs(folder), expected) == []
    assert left_behind(folder) == []


def wait_for_half(running: Running, alone: Ended) -> None:
    """Wait until a command has made half of its changes."""
    while running.changes.value < alone.changes // 2:
        assert not running.wait(0.01)
