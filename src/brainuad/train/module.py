"""What is trained: a model, the moving average of its weights, and the slices it learns from.

Every random draw of a step is a function of (seed, step) alone: which volumes, which slices, their
augmentation, the noise levels and the noise. So a run that was interrupted and resumed has the weights of one
that was not (see ``fit``), and no state of a random generator is stored.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

import brainuad.models  # noqa: F401  (registers them)
from brainuad._version import __version__
from brainuad.config import ExperimentConfig, flat_settings
from brainuad.data.slices import TrainingVolumes, sample_slices, take_slices
from brainuad.detector import load_model
from brainuad.errors import InputError
from brainuad.registry import MODELS

VALIDATION_SLICES = 4  # of every validation volume
PICTURE_VOLUMES = 4


def seeded_generator(seed: int, stream: str, index: int) -> torch.Generator:
    """Return a generator whose draws depend on these arguments only.

    It is on the CPU, so that every device sees the same draws.

    Args:
        seed: The experiment's seed.
        stream: What is drawn; different streams are independent.
        index: Step or epoch.
    """
    digest = hashlib.sha256(f"{seed}/{stream}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def count_batches(volumes: int, config: ExperimentConfig) -> int:
    """Return the steps of one epoch, after ``limit_train_batches``.

    Raises:
        InputError: The limit leaves none, or is above 1.0.
    """
    batches = math.ceil(volumes / config.datamodule.cfg.batch_size)
    limit = config.trainer.limit_train_batches
    count = int(batches * limit) if isinstance(limit, float) else min(batches, int(limit))
    if not 0 < count <= batches:
        fault = f"{limit} of {batches} batches is {count}"
        raise InputError("trainer.limit_train_batches", fault, "Give a number, or a fraction up to 1.0")
    return count


def learning_rate_share(step: int, steps: int, warmup_steps: int, decay_steps: int) -> float:
    """Return the share of the full learning rate that a step takes: rising, then 1, then falling towards zero."""
    warmth = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    return warmth * (min(1.0, (steps - step) / decay_steps) if decay_steps else 1.0)


def batch_indices(volumes: int, batch_size: int, batches_per_epoch: int, seed: int, step: int) -> Tensor:
    """Return the volumes of a step: (B,) int64, B <= ``batch_size``. Every epoch is a new permutation."""
    epoch, position = divmod(step, batches_per_epoch)
    order = torch.randperm(volumes, generator=seeded_generator(seed, "order", epoch))
    return order[position * batch_size : (position + 1) * batch_size]


def load_initial_weights(model: nn.Module, name_or_dir: str) -> None:
    """Give a model the weights of a shipped one, or of a model folder.

    Raises:
        InputError: There is no such model, or its network is another one.
    """
    try:
        model.load_state_dict(load_model(name_or_dir, "cpu").model.state_dict())
    except RuntimeError as error:
        remedy = "Give a model of the same network, or other settings model.cfg"
        raise InputError(name_or_dir, "has weights of another network", remedy) from error


def device_share(size: int, devices: int, rank: int) -> tuple[slice, float]:
    """Return which rows of a batch of ``size`` a device works on, and the weight of their mean loss.

    The mean over devices of the weighted losses is the mean over the batch. A device without a row, where an epoch's
    last batch is smaller than the number of devices, works on the first row with weight 0.
    """
    start, stop = (min(r, size % devices) + r * (size // devices) for r in (rank, rank + 1))
    weight = (stop - start) * devices / size
    return (slice(start, stop) if stop > start else slice(0, 1)), weight


def validation_slices(volumes: TrainingVolumes) -> tuple[Tensor, Tensor]:
    """Choose slices spread evenly over the brain of every volume.

    Returns:
        (N * VALIDATION_SLICES,) int64 each: volume numbers and axial slice numbers.
    """
    fractions = (torch.arange(VALIDATION_SLICES) + 0.5) / VALIDATION_SLICES
    brains = [torch.nonzero(brain)[:, 0] for brain in volumes.brain_slices]
    slices = [brain[(fractions * len(brain)).long()] for brain in brains]
    return torch.arange(len(volumes)).repeat_interleave(VALIDATION_SLICES), torch.cat(slices)


def hash_of(*volumes: TrainingVolumes) -> str:
    """Return a hash of all voxels and masks; masks tell which slices are drawn."""
    found = hashlib.sha256()
    for array in (array for each in volumes for array in (each.images, each.masks)):
        found.update(repr(tuple(array.shape)).encode())
        found.update(array.cpu().contiguous().numpy().data)
    return found.hexdigest()


@dataclass(frozen=True, eq=False)
class Batch:
    """One device's share of the batch of a step.

    Attributes:
        images: (B, 1, X, Y) in about [0, 1].
        rows: Which rows of the whole batch they are.
        size: Rows of the whole batch.
        weight: Factor of their mean loss, see ``device_share``.
    """

    images: Tensor
    rows: slice
    size: int
    weight: float


class Training(LightningModule):
    """A model, the moving average of its weights, and the slices it learns from.

    Attributes:
        batches_per_epoch: Steps of one epoch.
        model: What the optimiser changes.
        average: Exponential moving average of ``model``, or ``model`` itself where that is turned off. It is
            validated, pictured and exported.
        epoch_losses: Training losses of this epoch so far, on the device.
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
        if config.initial_weights:
            load_initial_weights(self.model, config.initial_weights)
        self.average: Any = self.model
        if config.trainer.ema_decay > 0:
            self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.epoch_losses: list[Tensor] = []

    def on_fit_start(self) -> None:
        """Bring the volumes to the model's device, once."""
        self.train_volumes = self.train_volumes.to(self.device)
        self.val_volumes = self.val_volumes.to(self.device)

    def _generator(self, stream: str, index: int) -> torch.Generator:
        return seeded_generator(self.config.seed, stream, index)

    def _validation_images(self, selection: slice) -> Tensor:
        """Return selected ones of the fixed validation slices: (B, 1, X, Y)."""
        numbers, slices = (chosen[selection].to(self.device) for chosen in self.fixed_slices)
        return take_slices(self.val_volumes, numbers, slices)

    def training_batch(self, step: int) -> Batch:
        """Return this device's share of the batch of a step.

        Every device draws for the whole batch and takes its rows, so that any number of devices trains on what one
        would, up to the rounding of the augmentation's matrix products, which depends on the number of rows.
        """
        data, seed = self.config.datamodule.cfg, self.config.seed
        numbers = batch_indices(len(self.train_volumes), data.batch_size, self.batches_per_epoch, seed, step)
        rows, weight = device_share(len(numbers), self.trainer.world_size, self.global_rank)
        drawn = self._generator("slices", step)
        images = sample_slices(self.train_volumes, numbers, drawn, augment=data.aug_intensity, share=rows)
        return Batch(images, rows, len(numbers), weight)

    def training_step(self, batch: int, batch_idx: int) -> Tensor:
        """Return the loss of one step. ``batch`` only counts; the step's number decides what is in it."""
        step = self.global_step
        mine = self.training_batch(step)
        noise = self._generator("noise", step)
        loss: Tensor = (
            self.model.loss(mine.images, noise, share=mine.rows, batch_size=mine.size) * mine.weight
        )
        self.epoch_losses.append(loss.detach())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam over the model's weights, one kernel for all on CUDA."""
        return torch.optim.Adam(self.model.parameters(), lr=self.config.datamodule.cfg.lr, fused=self._fused)

    @property
    def _fused(self) -> bool | None:
        """Whether one kernel changes all weights."""
        # In float16 it would undo the scaling of gradients by itself, after they have been clipped.
        on_cuda = self.trainer.strategy.root_device.type == "cuda"
        return (on_cuda and self.trainer.precision != "16-mixed") or None

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip gradients by their norm; Lightning's way refuses a fused optimiser, of scaled gradients or not."""
        if gradient_clip_val:
            nn.utils.clip_grad_norm_(self.model.parameters(), gradient_clip_val)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Step with the learning rate of this step, and let the average follow.

        The average's decay is min(ema_decay, (1 + step) / (10 + step)), so that it forgets the random start.
        """
        step, settings = self.global_step, self.config.trainer
        share = learning_rate_share(step, self.trainer.max_steps, settings.warmup_steps, settings.decay_steps)
        for group in optimizer.param_groups:
            group["lr"] = self.config.datamodule.cfg.lr * share
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.average is not self.model:
            decay = min(settings.ema_decay, (1 + step) / (10 + step))
            averages, weights = list(self.average.parameters()), list(self.model.parameters())
            get_ema_multi_avg_fn(decay)(averages, weights, step)

    @torch.no_grad()
    def validation_loss(self, epoch: int) -> float:
        """Return the mean loss of the averaged model on healthy validation slices.

        Slices, noise levels and noise are the same in every epoch, so that losses can be compared. With
        ``config.reference`` they are drawn afresh each time, one slice a volume, as in the release.
        """
        if self.config.reference:
            everyone = torch.arange(len(self.val_volumes))
            drawn = self._generator("validation slices", epoch)
            images = sample_slices(self.val_volumes, everyone, drawn, augment=False)
        else:
            images = self._validation_images(slice(None))
        generator = self._generator("validation noise", epoch if self.config.reference else 0)
        total = 0.0
        with self.trainer.precision_plugin.forward_context():
            for batch in images.split(self.config.datamodule.cfg.batch_size):
                total += self.average.loss(batch, generator).item() * len(batch)
        return total / len(images)

    @torch.no_grad()
    def sample_pictures(self) -> dict[str, Tensor]:
        """Return fixed validation slices, and what the averaged model sees and makes of them.

        Returns:
            Pictures by title, (B, X, Y) each, on the CPU.
        """
        middle = slice(VALIDATION_SLICES // 2, PICTURE_VOLUMES * VALIDATION_SLICES, VALIDATION_SLICES)
        images = self._validation_images(middle)
        pictures = {"scan": images}
        with self.trainer.precision_plugin.forward_context():
            if hasattr(self.average, "noised"):
                pictures["noised"] = self.average.noised(images, self._generator("picture", 0))
            pictures["reconstruction"] = self.average.reconstruct(images, self._generator("picture", 0))
        pictures["|difference|"] = (images - pictures["reconstruction"]).abs()
        return {title: picture[:, 0].float().cpu() for title, picture in pictures.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lay Adam's moments out as the weights are here, and step as suits this device.

        A checkpoint brings the memory format and the kernel of the device that wrote it; a fused kernel takes moments
        of another format for what they are not.
        """
        weights = list(self.model.parameters())
        for optimiser in checkpoint["optimizer_states"]:
            for group in optimiser["param_groups"]:
                group["fused"] = self._fused
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
