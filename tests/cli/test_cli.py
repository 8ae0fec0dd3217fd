"""What commands print where, and how they end."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from commands import run, typed
from typer.testing import CliRunner

import brainuad.data.check
import brainuad.detector
import brainuad.experiment.demo
import brainuad.experiment.run
from brainuad import console
from brainuad.cli import app
from brainuad.cli.options import DEVICES, PRECISIONS
from brainuad.errors import InputError

COMMANDS = ("prepare", "check", "train", "evaluate", "demo")


def test_help_and_version() -> None:
    assert run("--version").stdout == "brainuad 0.1.0\n"
    text = run("--help").stdout
    assert all(f"\n  {command} " in text for command in COMMANDS)
    assert "Commands:" in run(code=2).output
    for command in ("prepare", "check", "evaluate", "demo"):
        assert f"Usage: brainuad {command}" in CliRunner().invoke(app, [command, "-h"], prog_name="brainuad").stdout
    assert "Configuration groups" in run("train", "--help").output


def test_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "brainuad", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == run("--version").stdout


def test_verbosity_may_follow_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brainuad.experiment.run, "main", lambda words: 0)
    for words, level in ((("train", "a=b", "-v"), "INFO"), (("train", "a=b", "--quiet"), "ERROR")):
        run(*words)
        assert logging.getLogger("brainuad").level == getattr(logging, level)
    assert run("--", "-v", code=2).stderr


def test_commands_complete() -> None:
    words = {"_BRAINUAD_COMPLETE": "complete_bash", "COMP_WORDS": "brainuad cal", "COMP_CWORD": "1"}
    program = [sys.executable, "-m", "brainuad"]
    done = subprocess.run(program, env=os.environ | words, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["calibrate"]


def test_help_is_as_wide_as_the_terminal() -> None:
    program = [sys.executable, "-m", "brainuad", "score", "--help"]
    done = subprocess.run(program, env=os.environ | {"COLUMNS": "150"}, capture_output=True, text=True, check=True)
    assert 100 < max(map(len, done.stdout.splitlines())) <= 150


def test_every_score_says_what_it_is_for() -> None:
    rows = {row["score"]: row["for"] for row in json.loads(run("scores", "--json").stdout)}
    assert set(rows) >= {"rarity", "ssim_ensemble", "l1", "model", "intensity_atlas"}
    assert not [name for name in rows if name.endswith("_z")]
    assert all(text and "\n" not in text and len(text) < 120 for text in rows.values())


def test_importing_the_command_line_imports_nothing_slow() -> None:
    slow = {"torch", "lightning", "diffusers", "pandas", "SimpleITK", "scipy", "hydra", "matplotlib"}
    program = f"import sys, brainuad.cli; print(sorted({slow!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_installed_program(tmp_path: Path) -> None:
    done = typed("check", tmp_path / "nowhere", "--modality", "t3")
    assert (done.returncode, done.stdout) == (2, "")
    assert "'t3' is none of t1, t2" in done.stderr
    done = typed("prepare", tmp_path / "nowhere", "--dataset", "IXI", "-o", tmp_path / "out")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"brainuad: error: {tmp_path / 'nowhere'}: no such file or folder.")
    assert done.stderr.count("\n") == 1
    assert "Traceback" in typed("--debug", "prepare", tmp_path / "no", "--dataset", "ixi", "-o", tmp_path).stderr


@pytest.mark.parametrize(
    "words",
    [
        ("nonsense",),
        ("prepare", "RAW"),
        ("prepare", "RAW", "-o", "OUT", "--dataset", "adni"),
        ("prepare", "RAW", "-o", "OUT", "--dataset", "ixi", "--spacing", "3"),
        ("check",),
        ("check", "DATA", "--fold", "-1"),
        ("evaluate", "lite-t1", "DATA"),
        ("demo", "--seed", "x"),
        ("demo", "--device", "tpu"),
        ("check", "DATA", "--jobs", "0"),
        ("train", "no.such.setting=1"),
    ],
)
def test_wrong_usage(words: tuple[str, ...]) -> None:
    result = run(*words, code=2)
    assert "error" in result.stderr.lower()
    assert result.stdout == ""


def test_devices_and_precisions_are_those_there_are() -> None:
    assert DEVICES == brainuad.devices.DEVICES
    assert PRECISIONS == brainuad.devices.PRECISIONS


def test_train_passes_everything_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(brainuad.experiment.run, "main", lambda words: seen.append(list(words)) or 3)
    words = ["experiment=lite", "-m", "seed=1,2", "--resume", "--allow-leaks", "--cfg", "job", "+a=b"]
    run("train", *words, code=3)
    assert seen == [words]


def test_train_without_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DATA_DIR", raising=False)
    assert "DATA_DIR" in run("train", "experiment=smoke", code=1).stderr
    result = run("train", "experiment=smoke", "data_dir=nowhere", "log_dir=logs", code=1)
    assert "nowhere" in result.stderr


def test_demo_says_what_it_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pd.DataFrame({"MS: best dice": [0.25]}, index=pd.Index(["l1"], name="score"))
    groups = pd.DataFrame({"n": [6, 2], "chance": [np.nan, 0.01]}, index=pd.Index(["healthy", "MS"], name="set"))
    pictures = [tmp_path / "a.png", tmp_path / "b.png"]
    page = tmp_path / "report.html"

    def fake(output: Path, *, device: str, report: Callable[[str, int], None]) -> brainuad.experiment.demo.Demo:
        assert (output, device) == (Path("demo"), "auto")
        report("scoring", 2)
        results = tmp_path / "results.csv"
        return brainuad.experiment.demo.Demo(pd.DataFrame(), table, groups, results, pictures, page)

    monkeypatch.setattr(brainuad.experiment.demo, "run_demo", fake)
    shown = run("demo").stdout
    assert "0.250" in shown
    assert f"Pictures: {pictures[0]}" in shown
    assert f"Open {page}" in shown
    found = json.loads(run("demo", "--json").stdout)
    assert found["scores"] == [{"score": "l1", "MS: best dice": 0.25}]
    assert found["groups"][0] == {"set": "healthy", "n": 6, "chance": None}
    assert found["pictures"] == [str(path) for path in pictures]
    assert found["page"] == str(page)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/out/x"), 1, "error: /out/x: No space left on device"),
        (InputError("a.nii", "is broken", "Mend it"), 1, "error: a.nii: is broken. Mend it"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_become_one_line(monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, line: str) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(brainuad.data.check, "check_data_dir", fail)
    result = run("check", "DATA", code=code)
    assert (result.stdout, result.stderr) == ("", f"brainuad: {line}\n")
    if code == 1:
        assert CliRunner().invoke(app, ["--debug", "check", "DATA"]).exception is error


def test_a_bug_is_reported_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    console.report_bug(ValueError, ValueError("expected 3 axes\nmore"), None)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "brainuad: internal error: ValueError: expected 3 axes"
    assert "--debug" in second
