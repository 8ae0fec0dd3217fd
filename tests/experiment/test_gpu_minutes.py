"""The script for ten minutes of a GPU, on a processor: two tiny models in half a minute."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from commands import run

from brainuad.detector import Detector

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_minutes", BENCHMARKS / "gpu_minutes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_minutes"] = module
    spec.loader.exec_module(module)
    return module


def test_time_is_shared_by_what_is_left(script: ModuleType) -> None:
    first = script.SETS["first"]
    assert script.share_of_time(570, first) == 90
    assert script.share_of_time(468, first[1:]) == 90
    assert script.share_of_time(366, first[2:]) == 354
    assert script.share_of_time(96, ["lite-t1", "lite-t2"]) == 36
    assert script.share_of_time(324, ["paper-t1", "lite-t1", "cddpm-t1"]) == 99
    assert script.share_of_time(10, ["paper-t1"]) < script.LEAST


def typed(folder: Path, *words: str, data: str) -> subprocess.CompletedProcess[str]:
    """Run the script as a user does."""
    places = {"T1": data, "OUT": str(folder / "out"), "WORK": str(folder / "work"), "PYTHON": sys.executable}
    script = str(BENCHMARKS / "gpu_minutes.sh")
    return subprocess.run([script, *words], env={**os.environ, **places}, capture_output=True, text=True, check=False)


@pytest.mark.long
def test_two_tiny_models_in_half_a_minute(here: Path) -> None:
    run("pack", "DATA", "-o", "train.npz", "experiment=smoke")
    done = typed(here, "30", "smoke", "smoke-restoration", data="train.npz")
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = json.loads((here / "out" / "record.json").read_text())["trainings"]
    assert (first["name"], first["status"]) == ("smoke", "done")
    # a busy machine may have no time left for another, which the record says then
    assert second["name"] == "smoke-restoration"
    assert second["status"] in ("done", "left out: no time was left")
    assert first["steps"] > 0
    assert 0 < first["share_of_matrix_rate"] < 1
    assert [point[0] for point in first["curve"]["validation"]][-1] == first["steps"]
    found = {path.relative_to(here / "out").parts[0] for path in (here / "out").rglob("*")}
    assert found == {"parts", "record.json"}  # what is to be brought back, and nothing else
    run("models", "unpack", here / "out" / "parts" / "smoke", "-o", "model")
    assert Detector.load(here / "model").provenance["step"] <= first["steps"]


@pytest.mark.long
def test_what_fails_is_recorded(here: Path) -> None:
    done = typed(here, "30", "smoke", data="missing.npz")
    assert done.returncode == 1
    (row,) = json.loads((here / "out" / "record.json").read_text())["trainings"]
    assert row["status"] == "failed"
    assert "missing.npz: " in row["message"]


def test_unknown_names_are_listed(here: Path) -> None:
    done = typed(here, "30", "nothing", data="missing.npz")
    assert done.returncode == 1
    assert "'nothing' is unknown. Known: first, second, lite-t1" in done.stderr
