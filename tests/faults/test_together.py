"""Two runs of one command into one folder at the same time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from disturbed import Ended, Running
from outputs import differences, left_behind, outputs

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("name", ["score", "evaluate"])
def test_two_at_a_time(
    name: str, commands: dict[str, Any], undisturbed: Callable[[str], tuple[Ended, dict[str, Any]]], tmp_path: Path
) -> None:
    _, expected = undisturbed(name)
    folder = tmp_path / "both"
    both = [Running(commands[name](folder), folder) for _ in range(2)]
    for ended in [running.ended() for running in both]:
        assert ended.code == 0, ended.said
    assert differences(outputs(folder), expected) == []
    assert left_behind(folder) == []
