"""Autoencoders: a slice is summed up in a few numbers and painted anew from them (Baur et al. 2021).

What is rare in training finds no place among the numbers, so a lesion should be missing from the picture. The networks
are plain convolutional ones of our own choice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brainuad.config import ModelSettings
from brainuad.errors import InputError
from brainuad.models.base import Draws, Model, check_positive
from brainuad.models.layers import GroupNorm, Upsample
from brainuad.registry import MODELS

CODED = 6  # pixels along each side of the features that the code is made of, whatever the size of a slice


@dataclass
class AutoencoderSettings(ModelSettings):
    """2.2 million weights.

    Attributes:
        latent_dim: Numbers that a slice is summed up in.
        widths: Channels of the levels, from the finest; each has half the resolution of the one before, and the first
            half that of the slice.
    """

    name: str = "ae"
    latent_dim: int = 128
    widths: tuple[int, ...] = (32, 64, 128, 128)


@dataclass
class VariationalSettings(AutoencoderSettings):
    """2.8 million weights.

    Attributes:
        divergence: Weight of the divergence from a standard normal distribution. With 1 the loss is the evidence lower
            bound for errors of a Laplace distribution of scale 1.
    """

    name: str = "vae"
    divergence: float = 1.0


@MODELS.register("ae", settings=AutoencoderSettings)
class Autoencoder(Model):
    """An autoencoder of axial slices, of any size.

    Two convolutions a level, group norm and SiLU. One linear layer makes the code of the coarsest features, another
    makes features of the code. Adam trains it on the absolute error.

    Args:
        config: The settings.
        per_number: Outputs of the encoder for each number of the code.

    Attributes:
        encoder: From (B, 1, X, Y) to the coarsest features.
        to_code: From these to (B, per_number * latent_dim).
        from_code: From (B, latent_dim) to the coarsest features.
        decoder: From these to a slice.
    """

    def __init__(self, config: AutoencoderSettings, *, per_number: int = 1) -> None:
        super().__init__()
        check_positive(config, "latent_dim", "widths")
        self.config = config
        widths, coded = tuple(config.widths), CODED**2 * config.widths[-1]
        groups = math.gcd(8, *widths)
        down: list[nn.Module] = []
        for before, after in zip((1, *widths), widths, strict=False):
            down += [*_convolution(before, after, groups, stride=2), *_convolution(after, after, groups)]
        up: list[nn.Module] = []
        for before, after in zip(widths[::-1], (*widths[-2::-1], widths[0]), strict=True):
            up += [Upsample(), *_convolution(before, after, groups), *_convolution(after, after, groups)]
        self.encoder = nn.Sequential(*down)
        self.to_code = nn.Linear(coded, per_number * config.latent_dim)
        self.from_code = nn.Linear(config.latent_dim, coded)
        self.decoder = nn.Sequential(*up, nn.Conv2d(widths[0], 1, 3, padding=1))

    def encode(self, images: Tensor) -> Tensor:
        """Return what the encoder makes of slices (B, 1, X, Y): (B, per_number * latent_dim)."""
        features = F.interpolate(self.encoder(images), (CODED, CODED), mode="bilinear")
        return self.to_code(features.flatten(1))

    def decode(self, code: Tensor, size: tuple[int, int]) -> Tensor:
        """Return slices (B, 1, X, Y) of a given size (X, Y) from codes (B, latent_dim)."""
        features = self.from_code(code).unflatten(1, (-1, CODED, CODED))
        coarsest = [math.ceil(length / 2 ** len(self.config.widths)) for length in size]
        painted: Tensor = self.decoder(F.interpolate(features, coarsest, mode="bilinear"))
        return painted[..., : size[0], : size[1]]

    def loss(self, images: Tensor, masks: Tensor, draws: Draws) -> Tensor:
        """Return the mean absolute error of all pixels."""
        return (self.reconstruct(images, None).float() - images).abs().mean()

    def reconstruct(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return slices (B, 1, X, Y) painted from their codes."""
        return self.decode(self.encode(images), (images.shape[2], images.shape[3]))


@MODELS.register("vae", settings=VariationalSettings)
class VariationalAutoencoder(Autoencoder):
    """A variational autoencoder (Kingma & Welling 2014): the code of a slice is a normal distribution.

    Training paints from a draw, reconstruction from the mean.
    """

    config: VariationalSettings

    def __init__(self, config: VariationalSettings) -> None:
        if config.divergence < 0:
            raise InputError("model.cfg.divergence", f"{config.divergence} is negative", "Give 0 or more")
        super().__init__(config, per_number=2)

    def draw(self, count: int, size: tuple[int, int], generator: torch.Generator, *, progress: float = 0.0) -> Draws:
        """Draw standard normal numbers that the codes are drawn by."""
        return {"code": torch.randn(count, self.config.latent_dim, generator=generator)}

    def loss(self, images: Tensor, masks: Tensor, draws: Draws) -> Tensor:
        """Return the mean absolute error, and the weighted divergence of the codes per pixel."""
        mean, log_variance = self.encode(images).float().chunk(2, dim=1)
        code = mean + (log_variance / 2).exp() * draws["code"]
        painted = self.decode(code, (images.shape[2], images.shape[3])).float()
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum() / 2
        return (painted - images).abs().mean() + self.config.divergence * divergence / images.numel()

    def reconstruct(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return slices (B, 1, X, Y) painted from the means of their codes."""
        mean = self.encode(images).chunk(2, dim=1)[0]
        return self.decode(mean, (images.shape[2], images.shape[3]))


def _convolution(inputs: int, outputs: int, groups: int, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
    return [convolution, GroupNorm(groups, outputs), nn.SiLU()]
