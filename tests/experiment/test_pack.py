"""Training from one packed file, as a user types it."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import run
from presets import SMALL

from brainuad.data.packed import read_packed
from brainuad.experiment import fold
from brainuad.experiment import run as experiment
from brainuad.experiment.overrides import read_overrides

SETTINGS = ["experiment=smoke", *SMALL, "datamodule.cfg.imageDim=[40,48,32]"]


def losses(run_folder: Path) -> list[float]:
    with (run_folder / "fold0" / "metrics.csv").open(newline="") as handle:
        return [float(row[key]) for row in csv.DictReader(handle) for key in row if "loss" in key and row[key]]


@pytest.fixture
def packed(here: Path) -> Path:
    run("pack", "DATA", "-o", "train.npz", *SETTINGS)
    return here / "train.npz"


def test_the_scans_are_those_of_the_data(packed: Path) -> None:
    from_data = read_overrides([*SETTINGS, "data_dir=DATA"])
    from_file = read_overrides([*SETTINGS, "data_dir=train.npz"])
    cases = fold.fold_cases(from_data, 0)
    assert fold.fold_cases(from_file, 0) == []
    cohort = read_packed(packed)
    chosen = [*fold.healthy(cases, "train"), *fold.healthy(cases, "val")]
    assert [scan.subject for scan in cohort.scans] == [case.subject for case in chosen]
    assert [scan.split for scan in cohort.scans] == ["train", "train", "val"]
    for there, here in zip(fold.training_volumes(from_data, cases), fold.training_volumes(from_file, []), strict=True):
        assert len(there) == len(here)
        assert (there.masks == here.masks).all()
        assert (there.images - here.images).abs().max() <= 0.501 * cohort.steps.max()


@pytest.mark.slow
def test_training_needs_that_file_alone(packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*SETTINGS, "logger.csv=True"]
    assert experiment.main([*words, "data_dir=DATA", "name=data"]) == 0
    by_data = Path(capsys.readouterr().out.strip())
    shutil.rmtree(tmp_path / "DATA")
    shutil.rmtree(tmp_path / "cache")
    assert experiment.main([*words, "data_dir=train.npz", "name=file"]) == 0
    shown = capsys.readouterr()
    assert shown.err.count("There are no test cases, so nothing is evaluated") == 1
    by_file = Path(shown.out.strip())
    assert losses(by_data)
    np.testing.assert_allclose(losses(by_file), losses(by_data), rtol=0.02)

    # one epoch more, as if it had been stopped
    more = [*words, "data_dir=train.npz", "name=file", "resume=True", "trainer.max_epochs=3"]
    assert experiment.main(more) == 0
    assert json.loads((by_file / "fold0" / "training.json").read_text())["steps"] == 3


def test_other_settings_are_one_error(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*SETTINGS, "data_dir=train.npz", "datamodule.cfg.affine=used", "fold=1"]
    assert experiment.main(words) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("brainuad: error: train.npz: was packed with other settings (datamodule.cfg.affine=")
    assert "affine=ignored there, used here; fold=0 there, 1 here" in line


def test_it_cannot_be_evaluated_on(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*SETTINGS, "data_dir=train.npz", "onlyEval=True", "load_checkpoint=model"]
    (packed.parent / "model").mkdir()
    config = read_overrides(words)
    with pytest.raises(experiment.InputError, match="holds no test scans"):
        fold.fold_cases(config, 0)


@pytest.mark.parametrize(
    ("words", "code", "fault"),
    [
        (["DATA", "-o", "train.bin"], 1, "train.bin: does not end in .npz"),
        (["train.npz", "-o", "again.npz"], 1, "train.npz: is packed already"),
        (["DATA", "-o", "again.npz", "datamodule.cfg.mod=t1"], 2, "no such setting"),
        (["DATA", "-o", "again.npz", "data_dir=DATA"], 2, "is given twice"),
        (["DATA", "-o", "again.npz", "fold=3"], 1, "Folds present: 0"),
        (["nowhere", "-o", "again.npz"], 1, "nowhere: is no folder"),
    ],
)
def test_what_is_refused(here: Path, words: list[str], code: int, fault: str) -> None:
    shown = run("pack", *words, code=code).stderr
    assert fault in " ".join(shown.replace("│", " ").split())
    assert not list(here.glob("*.npz"))
