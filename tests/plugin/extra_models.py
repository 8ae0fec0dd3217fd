"""Models of another package, as small as can be: each brings its settings, and nothing of brainuad knows of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brainuad.config import TEST_TIME, ModelSettings
from brainuad.models.base import Draws, Model
from brainuad.registry import MODELS


@dataclass
class TinyVAESettings(ModelSettings):
    """Settings of `TinyVAE`.

    Attributes:
        latent_dim: Numbers that a slice is summed up in.
        divergence: Weight of the divergence from a standard normal distribution.
    """

    latent_dim: int = 16
    divergence: float = 1e-3


@MODELS.register("tiny-vae", settings=TinyVAESettings)
class TinyVAE(Model):
    """A variational autoencoder (Kingma & Welling 2014): reconstructs through a few numbers."""

    def __init__(self, config: TinyVAESettings) -> None:
        super().__init__()
        self.config = config
        self.encode = nn.Sequential(
            nn.Conv2d(1, 8, 5, stride=4), nn.SiLU(), nn.AdaptiveAvgPool2d(6), nn.Flatten(),
            nn.Linear(8 * 36, 2 * config.latent_dim),
        )  # fmt: skip
        self.decode = nn.Sequential(nn.Linear(config.latent_dim, 8 * 36), nn.Unflatten(1, (8, 6, 6)))
        self.paint = nn.Conv2d(8, 1, 3, padding=1)

    def draw(self, count: int, size: tuple[int, int], generator: torch.Generator, *, progress: float = 0.0) -> Draws:
        return {"noise": torch.randn(count, self.config.latent_dim, generator=generator)}

    def decoded(self, latent: Tensor, images: Tensor) -> Tensor:
        painted: Tensor = self.paint(F.interpolate(self.decode(latent), size=images.shape[2:], mode="bilinear"))
        return painted

    def loss(self, images: Tensor, masks: Tensor, draws: Draws) -> Tensor:
        mean, spread = self.encode(images).chunk(2, dim=1)
        error = (self.decoded(mean + (spread / 2).exp() * draws["noise"], images) - images).abs().mean()
        return error + self.config.divergence * (mean.square() + spread.exp() - 1 - spread).mean() / 2

    def reconstruct(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        return self.decoded(self.encode(images).chunk(2, dim=1)[0], images)


@dataclass
class FeatureSettings(ModelSettings):
    """Settings of `FeatureDistance`.

    Attributes:
        channels: Features of a pixel.
        scale: What the map is multiplied by.
    """

    channels: int = 4
    scale: float = field(default=100.0, metadata=TEST_TIME)


@MODELS.register("feature-distance", settings=FeatureSettings)
class FeatureDistance(Model):
    """How far the features of a pixel lie from those that are usual in health: a map, and no reconstruction.

    The features are random and fixed (as in Deep SVDD, Ruff et al. 2018, the network is kept from collapsing), of the
    slice and both its neighbours. The centre is learnt.
    """

    neighbours = 1

    def __init__(self, config: FeatureSettings) -> None:
        super().__init__()
        self.config = config
        self.features = nn.Conv2d(3, config.channels, 5, padding=2).requires_grad_(False)
        self.centre = nn.Parameter(torch.zeros(config.channels, 1, 1))

    def loss(self, images: Tensor, masks: Tensor, draws: Draws) -> Tensor:
        brain = masks[:, 1:2]
        distance = (self.features(images) - self.centre).square() * brain
        return distance.sum() / brain.sum().clamp(min=1)

    def maps(self, images: Tensor, masks: Tensor, generator: torch.Generator | None) -> Tensor:
        distance: Tensor = (self.features(images) - self.centre).square().sum(1, keepdim=True)
        return self.config.scale * distance


@MODELS.register("blur")
class Blur(Model):
    """How far a slice lies from its blurred copy: a map without a single weight."""

    def __init__(self, config: ModelSettings) -> None:
        super().__init__()

    def maps(self, images: Tensor, masks: Tensor, generator: torch.Generator | None) -> Tensor:
        return (images - F.avg_pool2d(images, 5, stride=1, padding=2, count_include_pad=False)).abs()
