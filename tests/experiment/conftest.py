"""The paper's data as working folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from paper_layout import build_tree, split_row, write_split
from presets import Evaluated

from brainuad.config import ExperimentConfig
from brainuad.data.cohort import Case
from brainuad.experiment import run as experiment


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the paper's data, ``pc_environment.env`` and a cache of its own, as working folder."""
    build_tree(tmp_path / "DATA", modalities=("t1", "t2"))
    (tmp_path / "pc_environment.env").write_text("# where things are\nDATA_DIR='DATA'\nLOG_DIR=LOGS\n")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("DATA_DIR", raising=False)
    monkeypatch.delenv("LOG_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def leaking(here: Path) -> Path:
    """Data in which a test subject is also trained on."""
    ixi = "Train/ixi"
    names = ("IXI219-Guys-0899-T1", "IXI552-Guys-1113-T1", "IXI219-Guys-0899-T1")
    rows = [split_row(name, ixi, lesion=False) for name in names]
    write_split(here / "DATA" / "Data" / "splits" / "IXI_train_fold0.csv", rows)
    return here


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> Evaluated:
    """What would have been evaluated."""
    calls: Evaluated = []

    def record(config: ExperimentConfig, model: Path, cases: list[Case], folder: Path) -> int:
        calls.append((model, cases, folder))
        return 0

    monkeypatch.setattr(experiment, "evaluate_fold", record)
    return calls
