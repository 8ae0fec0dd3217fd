"""How training goes: progress on stderr, and a table of losses."""

from __future__ import annotations

import csv
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from brainuad.errors import InputError
from brainuad.files import atomic_path
from brainuad.train.callbacks import Epochs

SECONDS_BETWEEN_LINES, SECONDS_BETWEEN_UPDATES = 30.0, 1.0


class Progress(Callback):
    """Shows on stderr how training goes: a bar where someone watches, a plain line now and then in a log."""

    def __init__(self, epochs: Epochs) -> None:
        self.epochs = epochs
        self.bar: Bar | None = None
        self.last_step, self.last_time = 0, 0.0

    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        """Start the clock, and the bar on a terminal."""
        self.last_step, self.last_time = trainer.global_step, time.monotonic()
        if sys.stderr.isatty() and trainer.is_global_zero:
            columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
            self.bar = Bar(*columns, console=Console(stderr=True))
            budget = self.epochs.budget
            total = trainer.max_steps if budget is None else round(budget.used_before + budget.seconds)
            self.bar.add_task("", total=total, completed=self._done(trainer))
            self.bar.start()

    def _done(self, trainer: Trainer) -> int:
        """Return the steps that are done, or by the clock the seconds that are used."""
        return trainer.global_step if self.epochs.budget is None else round(self.epochs.budget.used)

    def on_train_batch_end(self, trainer: Trainer, module: Any, *args: Any) -> None:
        """Renew the bar or print a line, when it is time."""
        now, step, budget = time.monotonic(), trainer.global_step, self.epochs.budget
        interval = SECONDS_BETWEEN_LINES if self.bar is None else SECONDS_BETWEEN_UPDATES
        if not trainer.is_global_zero or (now - self.last_time < interval and not self.epochs.finished):
            return
        speed = (step - self.last_step) / (now - self.last_time)
        self.last_step, self.last_time = step, now
        losses = module.epoch_losses
        loss = torch.stack(losses).mean().item() if losses else self.epochs.train_loss
        text = (
            f"epoch {step / module.batches_per_epoch:.1f}  loss {loss:.5f}  "
            f"validation {self.epochs.validation_loss:.5f}  {speed:.2f} steps/s"
        )
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=self._done(trainer), description=text)
            return
        total = "" if budget else f"/{trainer.max_steps}"
        minutes = (budget.left if budget else (trainer.max_steps - step) / speed) / 60
        print(f"step {step}{total}  {text}  {minutes:.1f} min left", file=sys.stderr, flush=True)

    def teardown(self, *args: Any, **stage: Any) -> None:
        """Leave the terminal as it was."""
        if self.bar is not None:
            self.bar.stop()

    def on_exception(self, *args: Any) -> None:
        """Leave the terminal as it was."""
        self.teardown()


class MetricsTable(Logger):
    """Writes ``metrics.csv``, one row an epoch. A resumed run continues the table."""

    COLUMNS = ("epoch", "step", "train_loss", "val_loss", "seconds")

    def __init__(self, path: Path, resumed_step: int) -> None:
        super().__init__()
        self.path, self.resumed_step = path, resumed_step
        self.started = time.monotonic()
        self.begun = False

    def begin(self) -> None:
        """Write the header and the rows up to the step that training continues from."""
        rows: list[dict[str, str]] = []
        if self.resumed_step and self.path.exists():
            with self.path.open(newline="") as handle:
                # a row that a full disk cut off lacks its last column
                whole = [row for row in csv.DictReader(handle) if row["seconds"]]
                rows = [row for row in whole if int(row["step"]) <= self.resumed_step]
        if rows:
            self.started -= float(rows[-1]["seconds"])
        with atomic_path(self.path) as temporary, temporary.open("w", newline="") as handle:
            writer = csv.DictWriter(handle, self.COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        self.begun = True

    @property
    def name(self) -> str:
        """Name of the table."""
        return "metrics"

    @property
    def version(self) -> str:
        """Empty: a run has one table."""
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run has its settings in a file of their own."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add the row of an epoch.

        Raises:
            InputError: The disk is full, or the folder is gone or read-only.
        """
        if "train/loss" not in metrics:
            return
        if not self.begun:  # not before: only one of several devices comes here
            self.begin()
        row = (
            f"{metrics['epoch']:.0f}",
            step,
            f"{metrics['train/loss']:.6g}",
            f"{metrics['val/loss']:.6g}" if "val/loss" in metrics else "",
            f"{time.monotonic() - self.started:.1f}",
        )
        try:
            with self.path.open("a", newline="") as handle:
                csv.writer(handle).writerow(row)
        except OSError as error:
            fault = f"cannot be written ({error.strerror})"
            raise InputError(self.path, fault, "Free space, and add resume=True") from error
