"""Shares of a cohort scored by several jobs: none twice, none lost, one table in the end."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from click.testing import Result
from tiny import IMAGE, tiny_detector
from typer.testing import CliRunner

from brainuad.cli import app


def score(*words: object) -> Result:
    return CliRunner().invoke(app, ["score", *map(str, words)])


@pytest.fixture
def cohort(tmp_path: Path) -> list[object]:
    """Arguments of a run over three scans, two of which have the same file name."""
    for name in ("one/t1", "two/t1", "two/other"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(IMAGE, tmp_path / f"{name}.nii.gz")
    tiny_detector().save(tmp_path / "model")
    words = [tmp_path / "one", tmp_path / "two", "--model", tmp_path / "model", "-o", tmp_path / "out"]
    return [*words, "--device", "cpu"]


def test_shares_are_whole_and_apart(cohort: list[object]) -> None:
    everything = json.loads(score(*cohort, "--dry-run", "--json").stdout)
    assert len({row["result"] for row in everything}) == 3
    for shares in (2, 3):
        found = []
        for number in range(1, shares + 1):
            result = score(*cohort, "--dry-run", "--json", "--shard", f"{number}/{shares}")
            found += json.loads(result.stdout)
        assert sorted(found, key=str) == sorted(everything, key=str)  # names too are those of one run


@pytest.mark.long
def test_a_last_run_puts_shares_together(cohort: list[object], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert score(*cohort, "--shard", "1/2").exit_code == 0
    assert not (out / "report.html").exists()
    assert len(list(out.glob("*_anomaly.nii.gz"))) == 2
    assert score(*cohort, "--shard", "2/2").exit_code == 0
    maps = {path: path.stat().st_mtime_ns for path in out.glob("*_anomaly.nii.gz")}
    assert len(maps) == 3
    (out / "scores.csv").unlink()  # as where one of two jobs that ended at once wrote over the other's rows

    result = score(*cohort, "--json")
    assert result.exit_code == 0, result.output
    assert {path: path.stat().st_mtime_ns for path in out.glob("*_anomaly.nii.gz")} == maps
    with (out / "scores.csv").open() as handle:
        assert [row["status"] for row in csv.DictReader(handle)] == ["done"] * 3
    assert json.loads((out / "run.json").read_text())["counts"] == {"done": 0, "skipped": 3, "failed": 0}
    assert (out / "report.html").is_file()


def test_more_shares_than_scans(cohort: list[object]) -> None:
    result = score(*cohort, "--shard", "4/4")
    assert result.exit_code == 0
    assert "part 4/4 holds no scan" in result.stderr


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "a/b", "1/0"])
def test_wrong_parts(cohort: list[object], part: str) -> None:
    result = score(*cohort, "--shard", part)
    assert result.exit_code == 2
    assert "is not like 2/10" in result.stderr
