"""``brainuad check`` as a user types it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from commands import DAMAGES, damage, run


def test_check_of_a_sound_cohort(data_dir: Path) -> None:
    lines = run("check", data_dir, "--fold", 0).stdout.splitlines()
    assert lines[-1] == "0 errors, 1 warnings"
    (problem,) = json.loads(run("check", data_dir, "--json").stdout)
    assert problem["severity"] == "warning"
    assert "WMH_test.csv" in problem["fault"]


@pytest.mark.parametrize("name", [name for name in DAMAGES if name != "folder"])
def test_check_names_a_damaged_file(data_dir: Path, name: str) -> None:
    path = damage(data_dir, name)
    lines = run("check", data_dir, code=1).stdout.splitlines()
    line = next(line for line in lines if line.startswith("error: "))
    assert str(path) in line
    assert DAMAGES[name][2] in line


def test_check_with_processes_says_the_same(data_dir: Path) -> None:
    damage(data_dir, "truncated")
    words = ("check", data_dir, "--json")
    assert run(*words, "--jobs", 2, code=1).stdout == run(*words, code=1).stdout


def test_check_ends_with_an_error_where_subjects_leak(data_dir: Path) -> None:
    splits = data_dir / "Data/splits"
    shutil.copyfile(splits / "MSLUB_test.csv", splits / "MSLUB_val.csv")
    shown = run("check", data_dir, code=1).stdout
    assert "MSLUB patient19 is in val and test. Remove its rows" in shown
    assert "1 errors" in shown


def test_check_of_a_bad_table(data_dir: Path, tmp_path: Path) -> None:
    table = data_dir / "Data/splits/MSLUB_test.csv"
    table.write_text("img_name,age\npatient19,40\n")
    assert "MSLUB_test.csv: lacks the columns img_path" in run("check", data_dir, code=1).stdout
    manifest = tmp_path / "scans.csv"
    manifest.write_text("subject,image\nA,a.nii.gz\n")
    assert "lacks the columns label, mask, seg, split" in run("check", manifest, code=1).stdout
    assert "no such file" in run("check", tmp_path / "other.csv", code=1).stdout
