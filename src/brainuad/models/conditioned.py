"""Conditioned diffusion: the network is told what the clean slice looks like (cDDPM, Behrendt et al. 2023)."""

from __future__ import annotations

from torch import Tensor, nn

from brainuad.config import ModelConfig
from brainuad.models.diffusion import DiffusionModel
from brainuad.registry import MODELS

WIDTHS = (32, 64, 128, 256)  # of the encoder's levels, each with half the resolution of the one before


@MODELS.register("cddpm", settings=ModelConfig)
class ConditionedDiffusionModel(DiffusionModel):
    """A diffusion model whose network also gets a description of the clean slice.

    An encoder sums the clean slice up in 4 * ``unet_dim`` numbers. They are too few to hold a lesion, and enough to
    hold the contrast and the shape of the head, which noise hides. Beside the noise level they scale and shift the
    features of every block. The encoder is trained with the network. It is a small one of our own, where the paper has
    a ResNet-50.

    Args:
        config: As for :class:`DiffusionModel`.

    Attributes:
        encoder: From (B, 1, X, Y) in [-1, 1] to (B, 4 * unet_dim).
        project: Two layers that the description passes on its way to the network.
    """

    def __init__(self, config: ModelConfig) -> None:
        width = 4 * config.unet_dim
        super().__init__(config, condition=width)
        self.encoder = encoder(width)
        self.project = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def condition(self, clean: Tensor) -> Tensor:
        """Return the description of clean slices (B, 1, X, Y) in [-1, 1]: (B, 4 * unet_dim)."""
        described: Tensor = self.project(self.encoder(clean))
        return described


def encoder(outputs: int) -> nn.Sequential:
    """Return a convolutional encoder from (B, 1, X, Y) to (B, outputs)."""
    layers: list[nn.Module] = []
    for before, after in zip((1, *WIDTHS), WIDTHS, strict=False):
        layers += [
            nn.Conv2d(before, after, 3, stride=2, padding=1),
            nn.GroupNorm(8, after),
            nn.SiLU(),
            nn.Conv2d(after, after, 3, padding=1),
            nn.GroupNorm(8, after),
            nn.SiLU(),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], outputs))
