"""Training by the clock."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from tiny_training import load, table, tiny

import brainuad.train.budget
from brainuad.config import parse_time
from brainuad.errors import InputError
from brainuad.modelfile import read_model
from brainuad.train import fit
from brainuad.train.budget import Budget, annealed
from brainuad.train.module import Training
from brainuad.train.slices import TrainingVolumes


class Clock:
    """Stands in for ``time``; moves when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    stands = Clock()
    monkeypatch.setattr(brainuad.train.budget, "time", stands)
    return stands


@pytest.mark.parametrize(
    ("text", "seconds"), [("00:08:30", 510), ("00:00:01", 1), ("12:00:00", 43200), ("02:00:00:05", 172805)]
)
def test_times(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "8:3", "90", "00:00:00", "-00:01:00", "8m"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(InputError, match=r"trainer\.max_time: .*HH:MM:SS"):
        parse_time(text)


def test_rate_falls_from_one_to_zero() -> None:
    rates = [annealed(progress / 100) for progress in range(101)]
    assert rates[0] == 1
    assert rates[-1] == pytest.approx(0, abs=1e-12)
    assert rates == sorted(rates, reverse=True)


def test_budget_keeps_time_for_the_last_validation(clock: Clock) -> None:
    budget = Budget(100, started=clock.now)
    clock.now += 50
    assert (budget.used, budget.left, budget.progress) == (50, 50, 0.5)
    budget.has_validated(10)
    assert (budget.left, budget.progress) == (35, pytest.approx(50 / 85))
    clock.now += 40
    assert (budget.left, budget.progress) == (0, 1)


def test_a_resumed_run_gets_its_budget_on_top(clock: Clock) -> None:
    budget = Budget(100, used_before=50, started=clock.now)
    assert (budget.progress, budget.left) == (pytest.approx(1 / 3), 100)
    clock.now += 100
    assert (budget.progress, budget.left) == (1, 0)


def test_validations_are_spread_over_the_budget(clock: Clock) -> None:
    budget, due = Budget(1000, started=clock.now), 0
    for _ in range(1000):
        if budget.validation_due():
            budget.has_validated(0.0)
            due += 1
        clock.now += 1
    assert due == 19  # and one at the end


@pytest.mark.long
def test_twenty_seconds_and_twenty_more(
    train_volumes: TrainingVolumes, val_volumes: TrainingVolumes, tmp_path: Path
) -> None:
    config = tiny(max_time="00:00:20", ema_decay=0.999)
    fit(config, train_volumes, val_volumes, tmp_path)
    first = json.loads((tmp_path / "training.json").read_text())
    last = load(tmp_path / "checkpoints" / "last.ckpt")
    assert first["max_time"] == "00:00:20"
    assert first["seconds"] > 15  # it used what it was given, but for the time of a validation
    assert last["optimizer_states"][0]["param_groups"][0]["lr"] < 0.02 * config.datamodule.cfg.lr
    validated = [row for row in table(tmp_path) if row["val_loss"]]
    assert 2 <= len(validated) <= 21
    assert int(validated[-1]["step"]) == first["steps"]
    provenance = read_model(tmp_path / "model")[3]
    assert provenance["seconds"] > 0
    fit(tiny(max_time="00:00:20", resume=True), train_volumes, val_volumes, tmp_path)
    second = json.loads((tmp_path / "training.json").read_text())
    resumed = load(tmp_path / "checkpoints" / "last.ckpt")
    assert second["steps"] > first["steps"]
    used = [state["used"] for state in resumed["callbacks"].values()]
    assert max(used) > 30


def test_what_is_stopped_early_has_learnt_something_and_leaves_a_model(
    train_volumes: TrainingVolumes, val_volumes: TrainingVolumes, tmp_path: Path
) -> None:
    timer = threading.Timer(3, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        fit(tiny(max_time="01:00:00"), train_volumes, val_volumes, tmp_path)
    provenance = read_model(tmp_path / "model")[3]
    assert provenance["step"] == load(tmp_path / "checkpoints" / "last.ckpt")["global_step"]
    assert not (tmp_path / "training.json").exists()


def test_the_average_reaches_back_over_a_share_of_the_steps(
    train_volumes: TrainingVolumes, val_volumes: TrainingVolumes
) -> None:
    module = Training(tiny(ema_decay=0.9), train_volumes, val_volumes)
    assert module._decay(10_000) == 0.9
    module.budget = Budget(10)
    assert module._decay(0) == pytest.approx(0.1)
    assert module._decay(10_000) == pytest.approx(1 - 9 / 10_010)


def test_a_batch_may_be_larger_than_the_cohort(
    train_volumes: TrainingVolumes, val_volumes: TrainingVolumes, tmp_path: Path
) -> None:
    config = tiny(max_steps=2)
    config.datamodule.cfg.batch_size = 12  # of five volumes
    module = Training(config, train_volumes, val_volumes)
    counts = torch.bincount(module.draw(0)["indices"])
    assert counts.sum() == 12
    assert set(counts.tolist()) <= {2, 3}
    fit(config, train_volumes, val_volumes, tmp_path)
    assert [row["epoch"] for row in table(tmp_path)] == ["1", "2"]
