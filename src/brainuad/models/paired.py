"""A diffusion model and a denoising autoencoder beside it: two networks that find different lesions.

What the diffusion model replaces, fine detail included, is drawn anew from noise: small lesions go. The denoising
autoencoder keeps fine detail, and with it small lesions, but takes away larger ones, and its reconstruction is sharp
everywhere else. Most lesions stand out from one of the two reconstructions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from brainuad.models.base import Draws, batch_of
from brainuad.models.denoising import DenoisingAutoencoder, DenoisingSettings
from brainuad.models.diffusion import DiffusionModel, DiffusionSettings
from brainuad.registry import MODELS


@dataclass
class PairedSettings(DenoisingSettings, DiffusionSettings):
    """The settings of both."""

    name: str = "ddpm_dae"


@MODELS.register("ddpm_dae", settings=PairedSettings)
class PairedModel(DiffusionModel):
    """Reconstructs as `DiffusionModel` does, and a second time as `DenoisingAutoencoder` does.

    The networks have no weights in common. A training step is one of each, and the loss their sum.

    Attributes:
        denoiser: The denoising autoencoder.
    """

    def __init__(self, config: PairedSettings) -> None:
        super().__init__(config)
        self.denoiser = DenoisingAutoencoder(config)

    def draw(self, count: int, size: tuple[int, int], generator: torch.Generator, *, progress: float = 0.0) -> Draws:
        """Draw what both draw."""
        of_denoiser = self.denoiser.draw(count, size, generator, progress=progress)
        return super().draw(count, size, generator, progress=progress) | of_denoiser

    def loss(self, images: Tensor, masks: Tensor, draws: Draws) -> Tensor:
        """Return the sum of both losses."""
        return super().loss(images, masks, draws) + self.denoiser.loss(images, masks, draws)

    def reconstruct_second(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return what the denoising autoencoder makes of slices (B, 1, X, Y)."""
        batches = images.split(batch_of(images))
        return torch.cat([self.denoiser.reconstruct(batch, generator) for batch in batches])
