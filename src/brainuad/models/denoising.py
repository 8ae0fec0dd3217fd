"""The denoising autoencoder: a U-Net learns to take coarse noise off a slice (DAE, Kascenas et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brainuad.config import ModelSettings
from brainuad.models.base import Draws, Model, check_positive
from brainuad.models.layers import GroupNorm, Upsample
from brainuad.registry import MODELS

NOISE_PIXELS = 16  # along each side of the noise as it is drawn
NOISE_SD = 0.2


@dataclass
class DenoisingSettings(ModelSettings):
    """The published network, 7.8 million weights.

    Attributes:
        widths: Channels of the levels, from the finest; each after the first has half the resolution.
    """

    name: str = "dae"
    widths: tuple[int, ...] = (64, 128, 256, 512)


@MODELS.register("dae", settings=DenoisingSettings)
class DenoisingAutoencoder(Model):
    """Takes coarse noise off a slice, and whatever else is not healthy with it.

    The noise is normal, of deviation 0.2. It is drawn at 16 x 16 pixels, brought to the size of the slice bilinearly,
    and rolled by a random number of pixels along both axes. It is in the brain only, where alone the squared error
    counts. A scan is reconstructed without noise. Outside the brain the reconstruction means nothing.

    As published the training is Adam (AMSGrad) with weight decay 1e-5 and a rate that falls along a cosine over 67,200
    steps of 16 slices. Here it is Adam as for every model, and the rate of ``experiment=DAE/DAE`` falls linearly.
    """

    def __init__(self, config: DenoisingSettings) -> None:
        super().__init__()
        check_positive(config, "widths")
        self.config = config
        self.unet = PlainUNet(config.widths)

    def draw(self, count: int, size: tuple[int, int], generator: torch.Generator, *, progress: float = 0.0) -> Draws:
        """Draw "coarse_noise", (B, 1, 16, 16), and "roll", (B, 2) int64: by how many pixels along each axis."""
        shape = (count, 1, NOISE_PIXELS, NOISE_PIXELS)
        rolls = [torch.randint(length, (count,), generator=generator) for length in size]
        noise = NOISE_SD * torch.randn(shape, generator=generator)
        return {"coarse_noise": noise, "roll": torch.stack(rolls, dim=1)}

    def loss(self, images: Tensor, masks: Tensor, draws: Draws) -> Tensor:
        """Return the mean squared error of the brain's pixels."""
        noise = spread(draws["coarse_noise"], draws["roll"], (images.shape[2], images.shape[3]))
        error = self.unet(images + noise * masks).float() - images
        return (error.square() * masks).sum() / masks.sum().clamp(min=1)

    def reconstruct(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return what the network makes of slices (B, 1, X, Y) as they are."""
        return self.unet(images)


class PlainUNet(nn.Module):
    """A U-Net (Ronneberger et al. 2015) with two convolutions a level, group norm and SiLU.

    Convolutions pad by reflection, resolution is halved by averages and doubled by repeating pixels (the last a choice
    of our own). Slices of any size are padded inside by repeating the last row and column.

    Args:
        widths: Channels of the levels, from the finest.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        widths = tuple(widths)
        groups = math.gcd(8, *widths)
        self.down = nn.ModuleList(
            _level(before, after, groups) for before, after in zip((1, *widths), widths, strict=False)
        )
        self.upsample = Upsample()
        self.up = nn.ModuleList(
            _level(coarse + fine, fine, groups) for coarse, fine in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.out = nn.Conv2d(widths[0], 1, 1)
        self.multiple = 2 ** (len(widths) - 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, 1, X, Y) for (B, 1, X, Y)."""
        height, width = x.shape[-2:]
        # two pixels at the coarsest level are the least that can be reflected
        pad = [max(-length % self.multiple, 2 * self.multiple - length) for length in (width, height)]
        if any(pad):
            x = F.pad(x, (0, pad[0], 0, pad[1]), mode="replicate")
        skips: list[Tensor] = []
        for level in self.down:
            x = level(F.avg_pool2d(x, 2) if skips else x)
            skips.append(x)
        skips.pop()
        for level in self.up:
            x = level(torch.cat([self.upsample(x), skips.pop()], dim=1))
        return self.out(x)[..., :height, :width]


def _level(inputs: int, outputs: int, groups: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before in (inputs, outputs):
        convolution = nn.Conv2d(before, outputs, 3, padding=1, padding_mode="reflect")
        layers += [convolution, GroupNorm(groups, outputs), nn.SiLU()]
    return nn.Sequential(*layers)


def spread(noise: Tensor, roll: Tensor, size: tuple[int, int]) -> Tensor:
    """Return coarse noise at the size of a slice, each field rolled by its own number of pixels.

    Args:
        noise: (B, 1, 16, 16).
        roll: (B, 2) int64, pixels along both axes, from 0.
        size: (X, Y) of the slice.

    Returns:
        (B, 1, X, Y).
    """
    fine = F.interpolate(noise, size, mode="bilinear")[:, 0]
    along, across = (
        (torch.arange(length, device=noise.device) - roll[:, axis, None]) % length for axis, length in enumerate(size)
    )
    field = torch.arange(len(noise), device=noise.device)[:, None, None]
    return fine[field, along[:, :, None], across[:, None]][:, None]
