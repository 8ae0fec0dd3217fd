"""What training and scoring ask of a model.

A training step has two halves. ``draw`` makes every random number of the step, on the processor. ``loss`` is then a
fixed sequence of tensor operations. So devices that share a batch see what one device would, a resumed run goes on as
an unbroken one, and on CUDA a whole step can be recorded once and replayed.

A model that needs no steps learns in one go, by ``fit``.

Scoring asks for a reconstruction, for a second one by another network, and for the model's own map of anomalies. A
model has what it overrides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from brainuad.config import ModelSettings
from brainuad.errors import InputError
from brainuad.registry import MODELS

Draws = dict[str, Tensor]
BATCH = 16  # slices in one network call on a processor
GPU_BATCH_PIXELS = 2**20  # in one on CUDA; bounds the memory to some gigabytes with the paper's network


class Inference(NamedTuple):
    """What a model makes of a scan.

    Attributes:
        reconstruction: How it would look healthy, on the scale of the images, not clamped; None of a model that does
            not reconstruct. Of slabs (B, 1, X, Y), of a volume (S, X, Y, Z) with S independent draws.
        anomaly: The model's own map, higher is more anomalous; None of a model without. Of slabs (B, 1, X, Y), of a
            volume (X, Y, Z).
        second: The second reconstruction of a volume, (X, Y, Z), where a score needs it.
    """

    reconstruction: Tensor | None
    anomaly: Tensor | None
    second: Tensor | None = None


class Model(nn.Module):
    """A model of healthy brains.

    A model overrides ``reconstruct``, ``maps`` or both; to be trained step by step ``draw`` and ``loss``, or ``fit`` to
    learn in one go. Its constructor takes its settings, keeps them as ``config``, and raises InputError where one is
    unknown or out of range.

    Attributes:
        neighbours: Axial slices on each side that the model sees besides the one it judges. Slabs have
            S = 2 * neighbours + 1 slices.
        whole_volumes: Whether it is given all slabs of a volume at once, because it draws random numbers for all of
            them or needs to know where each lies; it divides them into network calls by itself then. Others are given
            a batch at a time.
    """

    neighbours: int = 0
    whole_volumes: bool = False

    @property
    def reconstructs(self) -> bool:
        """Whether it says how a scan would look healthy."""
        return type(self).reconstruct is not Model.reconstruct

    @property
    def has_second(self) -> bool:
        """Whether it reconstructs a scan in a second way, too."""
        return type(self).reconstruct_second is not Model.reconstruct_second

    @property
    def has_map(self) -> bool:
        """Whether it makes a map of anomalies by itself."""
        return type(self).maps is not Model.maps

    @property
    def fits(self) -> bool:
        """Whether it learns from all volumes in one go, without steps."""
        return type(self).fit is not Model.fit

    def fit(self, images: Tensor, masks: Tensor) -> ModelSettings:
        """Learn from all training volumes in one go; training calls it in place of steps.

        Args:
            images: (N, X, Y, Z) healthy volumes on one grid, in about [0, 1].
            masks: (N, X, Y, Z) bool brain masks.

        Returns:
            The settings that build a model for the weights there are now.
        """
        raise NotImplementedError

    def start_from(self, load: Callable[[str], Model]) -> None:
        """Take over weights of other models before the first step of a training; nothing by default.

        It is not called where a training is resumed.

        Args:
            load: Gives the model of a folder, or a shipped one by its name.
        """
        return

    def draw(self, count: int, size: tuple[int, int], generator: torch.Generator, *, progress: float = 0.0) -> Draws:
        """Draw the random numbers of a training step; none by default.

        Args:
            count: Slabs of the whole batch, B.
            size: (X, Y) pixels of a slice.
            generator: Source of every number.
            progress: How much of the training is done, 0 to 1. Training by the clock passes it on, so that a model may
                narrow what it trains on; a training of so many steps always passes 0.

        Returns:
            Tensors by name. The first axis of each is the slab, so that devices can share them.
        """
        return {}

    def loss(self, images: Tensor, masks: Tensor, draws: Draws) -> Tensor:
        """Return the mean loss of a batch, a scalar.

        Args:
            images: (B, S, X, Y) healthy slabs in about [0, 1].
            masks: (B, S, X, Y) bool brain masks.
            draws: What ``draw`` gave, on the device of ``images``.
        """
        raise NotImplementedError

    def reconstruct(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return how the middle slices would look healthy.

        Args:
            images: (B, S, X, Y) in about [0, 1].
            generator: Source of random numbers.

        Returns:
            (B, 1, X, Y) on the scale of ``images``; values are not clamped.
        """
        raise NotImplementedError

    def reconstruct_second(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return what ``reconstruct`` does, made by another network."""
        raise NotImplementedError

    def maps(self, images: Tensor, masks: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return the model's own map of anomalies in the middle slices.

        Args:
            images: (B, S, X, Y) in about [0, 1].
            masks: (B, S, X, Y) bool brain masks.
            generator: Source of random numbers.

        Returns:
            (B, 1, X, Y), higher is more anomalous.
        """
        raise NotImplementedError

    def infer(self, images: Tensor, masks: Tensor, generator: torch.Generator | None) -> Inference:
        """Return reconstruction and map of slabs; a model that gets both from one network call overrides this."""
        return Inference(
            self.reconstruct(images, generator) if self.reconstructs else None,
            self.maps(images, masks, generator) if self.has_map else None,
        )

    def pictures(self, images: Tensor, masks: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return what to look at while the model trains: pictures of the middle slices by title, (B, 1, X, Y) each."""
        scans = images[:, self.neighbours, None]
        found, shown = self.infer(images, masks, generator), {"scan": scans}
        if found.reconstruction is not None:
            difference = (scans - found.reconstruction).abs()
            shown |= {"reconstruction": found.reconstruction, "|difference|": difference}
        if self.has_second:
            shown["second reconstruction"] = self.reconstruct_second(images, generator)
        return shown if found.anomaly is None else shown | {"map": found.anomaly}


def settings_class(name: str) -> type[ModelSettings]:
    """Return the settings that a model was registered with.

    Raises:
        InputError: There is no such model.
    """
    MODELS[name]  # raises with the nearest name
    return MODELS.settings.get(name, ModelSettings)


def own_settings(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of a model without those that only other models have, which earlier versions wrote too."""
    own = {field.name for field in fields(settings_class(name))}
    others = {field.name for other in MODELS for field in fields(settings_class(other))}
    return {key: value for key, value in values.items() if key in own or key not in others}


def check_positive(config: ModelSettings, *names: str) -> None:
    """Raise InputError for a setting below 1, or a list that is empty or has a number below 1."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, int):
            if value < 1:
                raise InputError(f"model.cfg.{name}", f"{value} is not positive", "Give 1 or more")
        elif not value or min(value) < 1:
            fault = f"{tuple(value)} is not a list of positive numbers"
            raise InputError(f"model.cfg.{name}", fault, "Give one number for each level")


def slabs_of(volume: Tensor, neighbours: int = 0) -> Tensor:
    """Return every axial slice of a volume with its neighbours.

    Args:
        volume: (X, Y, Z), an image or a mask.
        neighbours: Slices on each side; beyond the grid the outermost one is repeated.

    Returns:
        (Z, 2 * neighbours + 1, X, Y).
    """
    beside = torch.arange(-neighbours, neighbours + 1, device=volume.device)
    places = torch.arange(volume.shape[2], device=volume.device)[:, None] + beside
    places = places.clamp(0, volume.shape[2] - 1)
    return volume[:, :, places].permute(2, 3, 0, 1)


def batch_of(slabs: Tensor) -> int:
    """Return how many slabs of (B, S, X, Y) go into a network call: 16, and on CUDA as many as keep it busy."""
    return gpu_batch(len(slabs), slabs[0, 0].numel()) if slabs.is_cuda and len(slabs) else BATCH


def gpu_batch(slices: int, pixels: int) -> int:
    """Return the slices of a network call on CUDA: as many as are allowed, in calls of equal size."""
    most = max(1, GPU_BATCH_PIXELS // pixels)
    return math.ceil(slices / math.ceil(slices / most))
