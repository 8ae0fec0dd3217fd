"""What happens around the steps: epochs, validation, the best model, checkpoints."""

from __future__ import annotations

import copy
import math
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

from brainuad.config import ExperimentConfig
from brainuad.errors import InputError
from brainuad.files import atomic_path
from brainuad.modelfile import write_model
from brainuad.train.budget import Budget
from brainuad.train.module import Training
from brainuad.train.pictures import draw_pictures

SECONDS_BETWEEN_QUESTIONS = 1.0  # to the device, what the losses were
# to all processes, how far they are and whether to stop: each waits for the device
STEPS_BETWEEN_QUESTIONS = 16


class Interrupted(Exception):
    """Training was asked to stop, and has written its last checkpoint."""


class Due(NamedTuple):
    """What is to be done after a step.

    Attributes:
        interrupt: Leave; training was asked to stop.
        save: Write the last checkpoint, and the best model before it.
        validation: End the epoch, even within it, and validate.
        picture: Draw sample reconstructions.
        end: Training is finished.
    """

    interrupt: bool
    save: bool
    validation: bool
    picture: bool
    end: bool


class EndedEpoch(NamedTuple):
    """An epoch after so many steps: what to log of it, and its mean training loss, still on the device."""

    step: int
    metrics: dict[str, float]
    loss: Tensor


class Epochs(Callback):
    """Ends every epoch: validates, logs, pictures, and writes checkpoints.

    Epochs are counted from the step, not by Lightning, for which training is one endless epoch: only so does
    a run that resumes inside an epoch, or after one, go on at the very next step.

    The device is asked for losses once a second at most, and where something is due: with few volumes an epoch may
    last a few milliseconds, and each question makes the device wait for the next step.

    The best model is kept on the device, for losses may fall every second, and written just before the last
    checkpoint. So ``model/`` always holds at least what that checkpoint calls the best, and a run that was killed
    in between finds the better one again.

    Attributes:
        best_loss: Lowest validation loss so far.
        validation_loss: The latest one; NaN before the first.
        train_loss: Mean over the latest epoch, as far as this process saw it; NaN before the first.
        unwritten: Copy of the best model and its provenance until they are written, on the first of several devices.
        budget: The time there is, where training goes by the clock.
        finished: Whether training is.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        run_dir: Path,
        interrupt: threading.Event,
        fold: int = 0,
        budget: Budget | None = None,
    ) -> None:
        self.config, self.run_dir, self.interrupt, self.fold = config, run_dir, interrupt, fold
        self.budget = budget
        self.last = run_dir / "checkpoints" / "last.ckpt"
        self.saved = self.asked = time.monotonic()
        self.best_loss = math.inf
        self.validation_loss = self.train_loss = math.nan
        self.unwritten: tuple[nn.Module, dict[str, Any]] | None = None
        self.ended: list[EndedEpoch] = []
        self.validated_step = 0
        self.finished = False

    def on_train_batch_start(self, trainer: Trainer, module: Any, *args: Any) -> None:
        """Tell the module how much of the budget is used. Several devices go by the first one's clock."""
        asks = trainer.world_size == 1 or trainer.global_step % STEPS_BETWEEN_QUESTIONS == 0
        if self.budget is not None and asks:
            module.progress = trainer.strategy.broadcast(self.budget.progress)

    def on_train_batch_end(self, trainer: Trainer, module: Any, *args: Any) -> None:
        """Do what is due after a step."""
        step = trainer.global_step
        epoch, position = divmod(step, module.batches_per_epoch)
        due = self.due(trainer, module)
        if position == 0 or due.validation:
            self.end_epoch(trainer, module, epoch, validates=due.validation)
        if due.save or trainer.world_size > 1 or time.monotonic() - self.asked >= SECONDS_BETWEEN_QUESTIONS:
            self.read(trainer)
        if due.picture and trainer.is_global_zero:
            with atomic_path(self.run_dir / "pictures" / f"epoch{epoch:05d}.png") as temporary:
                draw_pictures(module.sample_pictures()).savefig(temporary, dpi=80, format="png")
        if due.save:
            check_finite(step, [*module.epoch_losses, *module.model.parameters()])
            self.save(trainer)
        self.finished = due.end
        if due.end:
            trainer.should_stop = True  # by the clock there is no last step that Lightning knows of
        elif due.interrupt:
            raise Interrupted

    def due(self, trainer: Trainer, module: Training) -> Due:
        """Return what is due after a step; on several devices they agree on it."""
        step, budget, settings = trainer.global_step, self.budget, self.config
        epoch, position = divmod(step, module.batches_per_epoch)
        interval = settings.callbacks.checkpoint_every_seconds
        wishes = [
            self.interrupt.is_set(),
            time.monotonic() - self.saved >= interval,
            budget is not None and budget.left == 0,
            budget is not None and budget.validation_due(),
        ]
        if trainer.world_size > 1:  # a signal may have reached one process only
            if interval and step % STEPS_BETWEEN_QUESTIONS:
                wishes = [False] * len(wishes)
            else:
                asked = torch.tensor(wishes, dtype=torch.float32, device=module.device)
                wishes = trainer.strategy.reduce(asked, reduce_op="sum").bool().tolist()
        interrupt, save, over, validation = wishes
        pictures = settings.callbacks.picture_every_n_epochs
        picture = pictures > 0 and position == 0 and epoch % pictures == 0
        if budget is None:
            over = step >= trainer.max_steps
            validation = position == 0 and epoch % settings.trainer.check_val_every_n_epoch == 0
        else:  # of epochs there may be hundreds a second; and what was learnt until an interrupt is worth a model
            picture = False
            validation = validation or interrupt
        return Due(
            interrupt=interrupt,
            save=save or interrupt or over,
            validation=validation or over,
            picture=picture or (over and pictures > 0),
            end=over,
        )

    def end_epoch(self, trainer: Trainer, module: Training, epoch: int, *, validates: bool) -> None:
        """Note the loss of an epoch, or of what there is of it, and validate where that is due.

        Raises:
            InputError: A loss or the weights are not finite where they are looked at; nothing has been written then.
        """
        step = trainer.global_step
        loss = torch.stack(module.epoch_losses).mean() if module.epoch_losses else torch.tensor(math.nan)
        if trainer.world_size > 1:
            loss = trainer.strategy.reduce(loss, reduce_op="mean")
        module.epoch_losses.clear()
        ended = EndedEpoch(step, {"epoch": float(epoch)}, loss)
        self.ended.append(ended)
        if not validates or step == self.validated_step:
            return
        self.read(trainer, keep_last=True)
        check_finite(step, [loss, *module.model.parameters()])
        started = time.monotonic()
        # the first device's, for all have to agree on whether it is the best so far
        self.validation_loss = trainer.strategy.broadcast(module.validation_loss(epoch))
        if self.budget is not None:
            self.budget.has_validated(time.monotonic() - started)
        self.validated_step = step
        check_finite(step, [torch.tensor(self.validation_loss)])
        ended.metrics["val/loss"] = self.validation_loss
        self.read(trainer)
        if self.validation_loss < self.best_loss:
            first, self.best_loss = self.best_loss == math.inf, self.validation_loss
            if trainer.is_global_zero:
                self.unwritten = copy.deepcopy(module.average), self.provenance(trainer, module, epoch)
            if first:  # at once, so that there is a model early
                self.write_best()

    def read(self, trainer: Trainer, *, keep_last: bool = False) -> None:
        """Ask the device for the losses of the epochs that ended, and log them; with ``keep_last`` all but the last.

        Raises:
            InputError: One is not finite.
        """
        ended, self.ended = (self.ended[:-1], self.ended[-1:]) if keep_last else (self.ended, [])
        self.asked = time.monotonic()
        if not ended:
            return
        for epoch, loss in zip(ended, torch.stack([each.loss for each in ended]).tolist(), strict=True):
            check_finite(epoch.step, [torch.tensor(loss)])
            self.train_loss = loss
            for logger in trainer.loggers if trainer.is_global_zero else ():
                logger.log_metrics({**epoch.metrics, "train/loss": loss}, epoch.step)

    def provenance(self, trainer: Trainer, module: Training, epoch: int) -> dict[str, Any]:
        """Return how the model of this step came about, for its ``config.yaml``."""
        return {
            "seed": self.config.seed,
            "fold": self.fold,
            "step": trainer.global_step,
            "epoch": epoch,
            "validation_loss": self.validation_loss,
            "seconds": round(self.budget.used, 1) if self.budget else None,
            "training_scans": len(module.train_volumes),
            "validation_scans": len(module.val_volumes),
            "initial_weights": self.config.initial_weights or None,
        }

    def write_best(self) -> None:
        """Write the best model to ``model/`` unless it is there."""
        if self.unwritten is not None:
            best, provenance = self.unwritten
            model, data = self.config.model.cfg, self.config.datamodule.cfg
            write_model(self.run_dir / "model", best, model, data, provenance=provenance)
            self.unwritten = None

    def save(self, trainer: Trainer) -> None:
        """Write the best model, then the last checkpoint. All devices call it at one step."""
        self.write_best()
        trainer.save_checkpoint(self.last)
        self.saved = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of this callback: the lowest loss, and the seconds used."""
        return {"best_loss": self.best_loss, "used": self.budget.used if self.budget else 0.0}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it."""
        self.best_loss = state_dict["best_loss"]
        if self.budget is not None:
            self.budget.used_before = state_dict["used"]


def check_finite(step: int, values: Sequence[Tensor]) -> None:
    """Raise InputError if losses or weights, all on one device, are NaN or infinite."""
    if not nn.utils.get_total_norm([value.detach() for value in values]).isfinite():  # in few calls for all
        fault = f"the loss or the weights were NaN or infinite at step {step}"
        remedy = "Start a new run with a lower datamodule.cfg.lr, or with trainer.precision=32"
        raise InputError("training", fault, remedy)
