"""Two processes evaluate to the files of one, also when one of them dies and the run is started again."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from painted import repaint, written
from paper_layout import build_tree, place_scan, split_row, write_split
from tiny import tiny_detector
from typer.testing import CliRunner

from brainuad.cli import app
from brainuad.data.cohort import read_cases

PROGRAM = Path(sys.executable).with_name("brainuad")
SCRIPT = Path(__file__).parent / "distributed_evaluate.py"
RESULTS = ("cases.csv", "summary.csv", "summary.json", "summary.md", "curves.json")
BROKEN = "patient21"
SCORED = 9  # 3 and 2 healthy scans, 2 and 2 patients
SCORES = 6  # 4 baselines and those that are asked for

pytestmark = pytest.mark.slow(seconds=30)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """A model, and a cohort of unlike scans of which one cannot be read."""
    folder = tmp_path_factory.mktemp("cohort")
    data_dir = build_tree(folder / "data")
    added = {
        "IXI_val_fold0": ("IXI036-IOP-0869-T1", "IXI037-IOP-0704-T1"),
        "IXI_test": ("IXI553-Guys-1114-T1",),
        "MSLUB_val": ("patient08-T1",),
        "MSLUB_test": ("patient20-T1", f"{BROKEN}-T1"),
    }
    first = {
        "IXI_val_fold0": "IXI035-IOP-0873-T1",
        "IXI_test": "IXI552-Guys-1113-T1",
        "MSLUB_val": "patient07-T1",
        "MSLUB_test": "patient19-T1",
    }
    for name, more in added.items():
        place = "Train/ixi" if name.startswith("IXI") else "Test/MSLUB"
        rows = [split_row(scan, place, lesion=name.startswith("MSLUB")) for scan in (first[name], *more)]
        write_split(data_dir / "Data" / "splits" / f"{name}.csv", rows)
        for row in rows[1:]:
            place_scan(data_dir / "Data", row, ("t1",))
    for number, case in enumerate(read_cases(data_dir, modality="t1")):
        repaint(case, number)
        if case.subject == BROKEN:
            case.image.write_bytes(gzip.compress(b"no image"))
    tiny_detector(imageDim=(40, 48, 30), rescaleFactor=2.0, affine="ignored").save(folder / "model")
    return [folder / "model", data_dir, "--device", "cpu", "--scores", "l1,l1_z"]


def evaluate_by_two(words: list[object], output: Path, dies_after: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command as it is documented, or so that a process dies after some cases."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [SCRIPT, dies_after] if dies_after else ["--no-python", PROGRAM, "evaluate"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(torch.get_num_threads()),  # as here, for the files are compared to the byte
        "XDG_CACHE_HOME": str(output.parent / "cache"),
    }
    return subprocess.run(
        list(map(str, [*launcher, *command, *words, "-o", output])),
        env=environment,
        capture_output=True,
        text=True,
        timeout=480,
        check=False,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in RESULTS}


@pytest.fixture(scope="module")
def alone(words: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder.parent / "cache"))
        result = CliRunner().invoke(app, ["evaluate", *map(str, words), "-o", str(folder)])
    assert result.exit_code == 3, result.output  # some cases failed
    return folder


def test_two_processes_evaluate_to_the_files_of_one(words: list[object], alone: Path, tmp_path: Path) -> None:
    result = evaluate_by_two(words, tmp_path / "out")
    assert result.returncode == 1, result.stderr  # torchrun's word for 3
    assert result.stderr.count(f"failed: MSLUB {BROKEN}") == 1
    assert result.stdout.count("Every scan:") == 1
    assert contents(tmp_path / "out") == contents(alone)
    done = written(tmp_path / "out")
    assert set(done.values()) == {1}, "nothing twice"
    assert len(done) == SCORED * (SCORES + 1)  # each case has facts too
    assert set(done) == set(written(alone))
    assert len(list((tmp_path / "out").glob("progress*.jsonl"))) == 2


@pytest.mark.long
def test_a_dead_process_ends_the_run_and_a_restart_completes_it(
    words: list[object], alone: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    result = evaluate_by_two(words, folder, dies_after=2)
    assert result.returncode == 1
    assert not (folder / "cases.csv").exists()
    before = written(folder)
    assert 0 < len(before) < SCORED * (SCORES + 1)
    result = evaluate_by_two(words, folder)
    assert "Every scan:" in result.stdout, result.stderr
    assert contents(folder) == contents(alone)
    assert set(written(folder).values()) == {1}, "what was known is not done again"
