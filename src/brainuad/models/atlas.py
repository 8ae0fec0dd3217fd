"""The healthy atlas as a model: how far a voxel lies from what healthy scans have there. A baseline, no network."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from brainuad.config import ModelSettings
from brainuad.errors import InputError
from brainuad.models.base import Model
from brainuad.moments import voxelwise_moments
from brainuad.registry import MODELS


@dataclass
class AtlasSettings(ModelSettings):
    """The grid that healthy scans were learnt on.

    Attributes:
        grid: Its voxels, (X, Y, Z). Training takes it from the scans.
    """

    name: str = "atlas"
    grid: tuple[int, ...] = ()


@MODELS.register("atlas", settings=AtlasSettings)
class AtlasModel(Model):
    """Mean and standard deviation of healthy scans at every voxel; its map is the distance from the mean in deviations.

    It is to be beaten: it knows where a voxel lies and what healthy scans have there, and nothing of its surroundings.
    Scans must be registered to one another. The score ``intensity_atlas`` is the same with the scans of a calibration
    in place of those of training. Both floor small deviations alike (`brainuad.moments`).

    Attributes:
        mean: (X, Y, Z) of the grid, in about [0, 1].
        sd: (X, Y, Z), positive.
    """

    mean: Tensor
    sd: Tensor
    whole_volumes = True

    def __init__(self, config: AtlasSettings) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(config.grid))
        self.register_buffer("sd", torch.ones(config.grid))

    def fit(self, images: Tensor, masks: Tensor) -> AtlasSettings:
        """Take mean and deviation of all volumes.

        Raises:
            InputError: There are fewer than two volumes, or they have another grid than the settings say.
        """
        if len(images) < 2:
            fault = f"{len(images)} healthy scan gives no standard deviation"
            raise InputError("atlas", fault, "Train on two or more")
        grid = tuple(images.shape[1:])
        if self.config.grid not in ((), grid):
            fault = f"is {tuple(self.config.grid)}, and the training scans have {grid}"
            raise InputError("model.cfg.grid", fault, "Leave it out")
        count, total, squares = (np.zeros(grid) for _ in range(3))
        for image, mask in zip(images.cpu().numpy(), masks.cpu().numpy(), strict=True):
            values = np.where(mask, image, 0).astype(np.float64)
            count += mask
            total += values
            squares += values**2
        self.mean, self.sd = map(torch.from_numpy, voxelwise_moments(count, total, squares))
        self.config = replace(self.config, grid=grid)
        return self.config

    def maps(self, images: Tensor, masks: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return how many healthy standard deviations every voxel lies from the healthy mean.

        Args:
            images: (Z, 1, X, Y), all slices of a volume on the grid, in about [0, 1].
            masks: Not used.
            generator: Not used.

        Raises:
            ValueError: The volume has another grid.
        """
        volume = images[:, 0].permute(1, 2, 0)
        if volume.shape != self.mean.shape:
            fault = f"the volume is {tuple(volume.shape)}, the grid of the atlas {tuple(self.mean.shape)}"
            raise ValueError(fault)
        return ((volume - self.mean) / self.sd).abs().permute(2, 0, 1)[:, None]
