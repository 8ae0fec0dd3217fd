"""Which scans a fold trains on, validates on and is tested on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from brainuad.config import ExperimentConfig
from brainuad.data.cohort import read_cases
from brainuad.errors import InputError
from brainuad.experiment import fold


def fold_config(here: Path, **changes: Any) -> ExperimentConfig:
    config = ExperimentConfig(data_dir=str(here / "DATA"), **changes)
    config.datamodule.cfg.sample_set = True
    return config


def test_leaks_are_left_out_and_counted(leaking: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    cases = fold.fold_cases(fold_config(leaking), 0)
    assert [case.subject for case in cases if case.split == "train"] == ["IXI219"]
    assert "left out 2 of 7 rows (1 subjects were in two splits, 1 images were listed twice)" in caplog.text


def test_leaks_are_refused_unless_allowed(leaking: Path) -> None:
    config = fold_config(leaking)
    config.datamodule.cfg.leak_free = False
    with pytest.raises(InputError, match=r"IXI IXI552 is in train and test.*--allow-leaks"):
        fold.fold_cases(config, 0)
    config.allow_leaks = True
    assert len(fold.fold_cases(config, 0)) == 7


def test_evaluation_leaves_out_what_training_leaves_out(leaking: Path) -> None:
    config = fold_config(leaking, onlyEval=True)
    subjects = [case.subject for case in fold.fold_cases(config, 0) if case.split == "train"]
    assert subjects == ["IXI219"]
    config.datamodule.cfg.leak_free = False
    with pytest.raises(InputError, match="--allow-leaks"):
        fold.fold_cases(config, 0)


def test_evaluation_takes_a_sample_where_asked(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = fold_config(here, onlyEval=True)
    monkeypatch.setattr(fold, "SAMPLE_SUBJECTS", 0)
    assert fold.fold_cases(config, 0) == []
    config.datamodule.cfg.sample_set = False
    assert fold.fold_cases(config, 0)


def test_training_takes_healthy_scans_of_its_own_sets(here: Path) -> None:
    cases = read_cases(here / "DATA", modality="t1", fold=0)
    assert {case.dataset for case in fold.healthy(cases, "val")} == {"IXI"}
    lesions = [case for case in cases if case.label]
    assert fold.healthy(lesions, "train") == fold.healthy(lesions, "val") == []


def test_sample_set_keeps_a_few_of_every_split(here: Path) -> None:
    cases = read_cases(here / "DATA", modality="t1", fold=0)
    kept = fold.first_subjects(cases * 9)
    assert len(kept) == 4 * 5
    assert {(case.dataset, case.split) for case in kept} == {(case.dataset, case.split) for case in cases}
