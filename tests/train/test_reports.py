"""The table of losses, on a disk that is or was full."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny_training import table

from brainuad.errors import InputError
from brainuad.train.reports import MetricsTable


def test_a_row_that_a_full_disk_cut_off_is_left_out(tmp_path: Path) -> None:
    head = "epoch,step,train_loss,val_loss,seconds\n"
    for cut in ("2", "2,6", "2,6,0.", "2,6,0.3,"):
        (tmp_path / "metrics.csv").write_text(f"{head}1,3,0.5,0.4,1.0\n{cut}")
        MetricsTable(tmp_path / "metrics.csv", 6).log_metrics({"epoch": 2.0, "train/loss": 0.3}, 6)
        assert [(row["step"], row["train_loss"]) for row in table(tmp_path)] == [("3", "0.5"), ("6", "0.3")]


def test_a_folder_that_is_gone_is_one_clear_error(tmp_path: Path) -> None:
    metrics = MetricsTable(tmp_path / "run" / "metrics.csv", 0)
    metrics.log_metrics({"epoch": 1.0, "train/loss": 0.3}, 3)
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(InputError, match=r"metrics\.csv: cannot be written .*resume=True"):
        metrics.log_metrics({"epoch": 2.0, "train/loss": 0.2}, 6)
