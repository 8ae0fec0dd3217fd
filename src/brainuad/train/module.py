"""What is trained: a model, the moving average of its weights, and the slices it learns from.

Every random draw of a step is a function of (seed, step) alone: which volumes, which slices, their
augmentation, the noise levels and the noise. So a run that was interrupted and resumed has the weights of one
that was not (see ``fit``), and no state of a random generator is stored.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

import brainuad.models  # noqa: F401  (registers them)
from brainuad._version import __version__
from brainuad.config import ExperimentConfig, flat_settings
from brainuad.detector import load_model
from brainuad.devices import upload
from brainuad.errors import InputError
from brainuad.models.base import Draws
from brainuad.registry import MODELS
from brainuad.train.batches import (
    VALIDATION_SLICES,
    batch_indices,
    count_batches,
    device_share,
    seeded_generator,
    validation_slices,
)
from brainuad.train.budget import Budget, annealed, learning_rate_factor
from brainuad.train.slices import TrainingVolumes, draw_batch, take_batch
from brainuad.train.step import WholeStep, copy_statistics

PICTURE_VOLUMES = 4


def load_initial_weights(model: nn.Module, name_or_dir: str) -> None:
    """Give a model the weights of a shipped one, or of a model folder.

    Raises:
        InputError: There is no such model, or its network is another one.
    """
    given = load_model(name_or_dir, "cpu")
    try:
        model.load_state_dict(given.model.state_dict())
    except RuntimeError as error:
        fault = f"has weights of another network ({given.model_config.name})"
        remedy = "Give a model of the same network, or other settings: model=NAME, model.cfg"
        raise InputError(name_or_dir, fault, remedy) from error


def hash_of(*volumes: TrainingVolumes) -> str:
    """Return a hash of all voxels and masks; masks tell which slices are drawn."""
    found = hashlib.sha256()
    for array in (array for each in volumes for array in (each.images, each.masks)):
        found.update(repr(tuple(array.shape)).encode())
        found.update(array.cpu().contiguous().numpy().data)
    return found.hexdigest()


def on_device(draws: Draws, device: torch.device) -> Draws:
    """Return random numbers on a device."""
    return {name: upload(numbers, device) for name, numbers in draws.items()}


@contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode for the block: batch normalisation uses its stored means."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


class Training(LightningModule):
    """A model, the moving average of its weights, and the slices it learns from.

    Attributes:
        batches_per_epoch: Steps of one epoch.
        model: What the optimiser changes.
        average: Exponential moving average of ``model``, or ``model`` itself where that is turned off. It is
            validated, pictured and exported.
        epoch_losses: Training losses of this epoch so far, on the device.
        budget: The time there is, where training goes by the clock.
        progress: How much of it is used, as far as this step goes by; 0 without a budget.
        whole_step: Takes the steps, where one can be recorded as a graph: on a single CUDA device.
    """

    def __init__(self, config: ExperimentConfig, train: TrainingVolumes, val: TrainingVolumes) -> None:
        super().__init__()
        self.config = config
        self.train_volumes, self.val_volumes = train, val
        self.batches_per_epoch = count_batches(len(train), config)
        self.fixed_slices = validation_slices(val)
        self.data_hash = hash_of(train, val)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.model: Any = MODELS[config.model.cfg.name](config.model.cfg)
        if not self.model.fits and not any(weight.requires_grad for weight in self.model.parameters()):
            raise InputError(config.model.cfg.name, "has no weights to train", "Save it as it is: Detector.save")
        if config.initial_weights:
            load_initial_weights(self.model, config.initial_weights)
        self.average: Any = self.model
        if config.trainer.ema_decay > 0:
            self.average = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.epoch_losses: list[Tensor] = []
        self.budget: Budget | None = None
        self.progress = 0.0
        self.whole_step: WholeStep | None = None

    def start(self) -> None:
        """Let the model take over weights of others, where training starts anew.

        Raises:
            InputError: They cannot be used.
        """
        self.model.start_from(lambda name_or_dir: load_model(name_or_dir, "cpu").model)
        if self.average is not self.model:
            self.average.load_state_dict(self.model.state_dict())

    def on_fit_start(self) -> None:
        """Bring the volumes to the model's device, once."""
        self.train_volumes = self.train_volumes.to(self.device)
        self.val_volumes = self.val_volumes.to(self.device)

    def on_train_start(self) -> None:
        """Record whole steps as CUDA graphs, where that is possible."""
        if self._records:
            self.whole_step = WholeStep(
                self.model,
                self.average,
                self.trainer.optimizers[0],
                self.train_volumes,
                precision=torch.bfloat16 if "bf16" in str(self.trainer.precision) else torch.float32,
                largest_norm=self.config.trainer.gradient_clip_val,
            )

    @property
    def _records(self) -> bool:
        """Whether steps can be recorded: on one CUDA device, and no loss is scaled as in float16."""
        on_cuda = self.trainer.strategy.root_device.type == "cuda"
        return on_cuda and self.trainer.world_size == 1 and self.trainer.precision != "16-mixed"

    def _generator(self, stream: str, index: int) -> torch.Generator:
        return seeded_generator(self.config.seed, stream, index)

    def _validation_batch(self, selection: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Return selected ones of the fixed validation slabs and their masks: (B, S, X, Y) each."""
        indices, slices = (chosen[selection] for chosen in self.fixed_slices)
        return take_batch(self.val_volumes, {"indices": indices, "slices": slices}, self.model.neighbours)

    def draw(self, step: int) -> dict[str, Tensor]:
        """Return all random numbers of a step, for the whole batch."""
        data, seed, volumes = self.config.datamodule.cfg, self.config.seed, self.train_volumes
        indices = batch_indices(len(volumes), data.batch_size, self.batches_per_epoch, seed, step)
        drawn = draw_batch(volumes, indices, self._generator("slices", step), augment=data.aug_intensity)
        width, height = volumes.images.shape[1:3]
        noise = self._generator("noise", step)
        return drawn | self.model.draw(len(indices), (width, height), noise, progress=self.progress)

    def training_batch(self, step: int) -> tuple[Tensor, Tensor, Draws, float]:
        """Return this device's share of the batch of a step.

        Every device draws for the whole batch and takes its rows, so that any number of devices trains on what one
        would, up to rounding.

        Returns:
            Slabs and masks, (B, S, X, Y) each; random numbers of the loss; and the weight of their mean loss.
        """
        drawn = self.draw(step)
        rows, weight = device_share(len(drawn["indices"]), self.trainer.world_size, self.global_rank)
        mine = {name: numbers[rows] for name, numbers in drawn.items()}
        images, masks = take_batch(self.train_volumes, mine, self.model.neighbours)
        return images, masks, on_device(mine, images.device), weight

    def training_step(self, batch: int, batch_idx: int) -> Tensor | None:
        """Return the loss of one step, or None after a whole step, of which nothing is left to do.

        ``batch`` only counts; the step's number decides what is in it.
        """
        step = self.global_step
        if self.whole_step is not None:
            loss = self.whole_step(self.draw(step), self._rate(step), self._decay(step))
            self.epoch_losses.append(loss)
            return None
        images, masks, draws, weight = self.training_batch(step)
        loss = self.model.loss(images, masks, draws) * weight
        self.epoch_losses.append(loss.detach())
        return loss

    def _rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        settings, full = self.config.trainer, self.config.datamodule.cfg.lr
        if self.budget is None:
            steps = self.trainer.max_steps
            return full * learning_rate_factor(step, steps, settings.warmup_steps, settings.decay_steps)
        return full * learning_rate_factor(step, 0, settings.warmup_steps, 0) * annealed(self.progress)

    def _decay(self, step: int) -> float:
        """Return the decay of the moving average at a step.

        It begins as (1 + step) / (10 + step), so that the average forgets the random start: it reaches back over a
        ninth of all steps so far. By the clock it does so to the end, however many steps there will be.
        """
        young = (1 + step) / (10 + step)
        return young if self.budget is not None else min(self.config.trainer.ema_decay, young)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam over the model's weights, one kernel for all on CUDA."""
        weights, rate = self.model.parameters(), self.config.datamodule.cfg.lr
        if self._records:  # a graph reads the rate where it is
            return torch.optim.Adam(weights, torch.tensor(rate, device=self.device), fused=True, capturable=True)
        return torch.optim.Adam(weights, lr=rate, fused=self._fused)

    @property
    def _fused(self) -> bool | None:
        """Whether one kernel changes all weights."""
        # In float16 it would undo the scaling of gradients by itself, after they have been clipped.
        on_cuda = self.trainer.strategy.root_device.type == "cuda"
        return self._records or (on_cuda and self.trainer.precision != "16-mixed") or None

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip gradients by their norm; Lightning's way refuses a fused optimiser, of scaled gradients or not."""
        if gradient_clip_val:
            nn.utils.clip_grad_norm_(self.model.parameters(), gradient_clip_val)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Step with the learning rate of this step, and let the average follow. A whole step does so by itself."""
        if self.whole_step is not None:
            assert optimizer_closure is not None
            optimizer_closure()
            return
        step = self.global_step
        for group in optimizer.param_groups:
            group["lr"] = self._rate(step)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.average is not self.model:
            averages, weights = list(self.average.parameters()), list(self.model.parameters())
            get_ema_multi_avg_fn(self._decay(step))(averages, weights, step)
            copy_statistics(self.average, self.model)

    @torch.no_grad()
    def validation_loss(self, epoch: int) -> float:
        """Return the mean loss of the averaged model on healthy validation slices.

        Slices, noise levels and noise are the same in every epoch, so that losses can be compared. With
        ``config.reference`` they are drawn afresh each time, one slice a volume, as in the release.
        """
        if self.config.reference:
            everyone = torch.arange(len(self.val_volumes))
            drawn = self._generator("validation slices", epoch)
            fresh = draw_batch(self.val_volumes, everyone, drawn, augment=False)
            images, masks = take_batch(self.val_volumes, fresh, self.model.neighbours)
        else:
            images, masks = self._validation_batch()
        generator = self._generator("validation noise", epoch if self.config.reference else 0)
        size, losses = self.config.datamodule.cfg.batch_size, []
        with self.trainer.precision_plugin.forward_context(), evaluated(self.average):
            for batch, brain in zip(images.split(size), masks.split(size), strict=True):
                draws = self.average.draw(len(batch), tuple(batch.shape[2:]), generator)
                loss = self.average.loss(batch, brain, on_device(draws, batch.device))
                losses.append(loss.float() * len(batch))
        return torch.stack(losses).sum().item() / len(images)

    @torch.no_grad()
    def sample_pictures(self) -> dict[str, Tensor]:
        """Return fixed validation slices, and what the averaged model makes of them.

        Returns:
            Pictures by title, (B, X, Y) each, on the CPU.
        """
        middle = slice(VALIDATION_SLICES // 2, PICTURE_VOLUMES * VALIDATION_SLICES, VALIDATION_SLICES)
        images, masks = self._validation_batch(middle)
        with self.trainer.precision_plugin.forward_context(), evaluated(self.average):
            pictures = self.average.pictures(images, masks, self._generator("picture", 0))
        return {title: picture[:, 0].float().cpu() for title, picture in pictures.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lay Adam's moments out as the weights are here, and step as suits this device.

        A checkpoint brings the memory format and the kernel of the device that wrote it; a fused kernel takes moments
        of another format for what they are not.
        """
        weights = list(self.model.parameters())
        for optimiser in checkpoint["optimizer_states"]:
            for group in optimiser["param_groups"]:
                rate = torch.tensor(float(group["lr"]), device=self.device)
                group["fused"], group["lr"] = self._fused, rate if self._records else rate.item()
                group["capturable"] = self._records and rate.is_cuda
            for number, moments in optimiser["state"].items():
                for name in ("exp_avg", "exp_avg_sq"):
                    moments[name] = torch.empty_like(weights[number], device="cpu").copy_(moments[name])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the settings, so that a resumed run can be held against them."""
        checkpoint["brainuad"] = {
            "version": __version__,
            "settings": flat_settings(self.config),
            "data": self.data_hash,
        }
