"""The denoising U-Net of the guided-diffusion family (Dhariwal & Nichol 2021)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brainuad.config import ModelSettings
from brainuad.models.base import check_positive
from brainuad.models.layers import (
    Attention,
    GroupNorm,
    ResidualBlock,
    TimeEmbedding,
    Upsample,
    timestep_features,
    zeroed,
)


@dataclass
class UNetSettings(ModelSettings):
    """The sizes of a U-Net.

    Attributes:
        unet_dim: Channels of the first level.
        dim_mults: Channel multiplier of each level; each level after the first halves the resolution.
        num_res_blocks: Residual blocks a level.
        attention_head_dim: Channels of one attention head; attention is at the bottleneck only.
        unshuffle: Pixel-unshuffle factor in front of the network (1: none), undone behind it.
    """

    unet_dim: int = 128
    dim_mults: tuple[int, ...] = (1, 2, 2)
    num_res_blocks: int = 3
    attention_head_dim: int = 64
    unshuffle: int = 1


class UNet(nn.Module):
    """Predicts a clean slice from a noisy one and its noise level.

    Residual blocks with scale-shift time embedding, residual up- and downsampling, self-attention at the
    bottleneck only. Every branch that ends in a sum, and the output, starts at zero: a new network returns
    zeros.

    Slices whose sides the network's total reduction does not divide are padded inside by repeating the last row and
    column, and the result is cropped: any shape works.

    Args:
        config: The sizes.
        inputs: Channels that come in.
        outputs: Channels that go out.
        condition: Numbers of a description of each slice that the network is given beside the noise level; 0 for none.

    Raises:
        InputError: One of these is not positive, or ``dim_mults`` is empty.
    """

    def __init__(self, config: UNetSettings, inputs: int = 1, outputs: int = 1, condition: int = 0) -> None:
        super().__init__()
        check_positive(config, "unet_dim", "num_res_blocks", "attention_head_dim", "unshuffle", "dim_mults")
        self.config = config
        channels = tuple(config.unet_dim * multiplier for multiplier in config.dim_mults)
        folded = config.unshuffle**2
        blocks, head_dim = config.num_res_blocks, config.attention_head_dim
        self.net = Network(inputs * folded, outputs * folded, channels, blocks, head_dim, condition)
        self.multiple = config.unshuffle * 2 ** (len(channels) - 1)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the network's output for noisy slices.

        Args:
            x: (B, inputs, X, Y); for diffusion clean slices of range [-1, 1] plus noise.
            t: (B,) int64, 0-based timesteps.
            condition: (B, condition), where the network takes one.

        Returns:
            (B, outputs, X, Y).
        """
        height, width = x.shape[-2:]
        pad = (0, -width % self.multiple, 0, -height % self.multiple)
        if any(pad):
            x = F.pad(x, pad, mode="replicate")
        folded = F.pixel_unshuffle(x, self.config.unshuffle)
        output = F.pixel_shuffle(self.net(folded, t, condition), self.config.unshuffle)
        return output[..., :height, :width]


class Network(nn.Module):
    """The layers of a U-Net; parameters have the names that diffusers' ``UNet2DModel`` gives them.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        channels: Of the levels, from the finest; each next one has half the resolution.
        blocks: Residual blocks of a level on the way down; on the way up it has one more.
        head_dim: Channels of an attention head, where the coarsest level has as many.
        condition: Numbers that every block is given beside the noise level.
    """

    def __init__(
        self, inputs: int, outputs: int, channels: tuple[int, ...], blocks: int, head_dim: int, condition: int = 0
    ) -> None:
        super().__init__()
        groups = math.gcd(32, *channels)  # 32, unless a narrow network cannot be divided so
        self.width, last = channels[0], channels[-1]
        time = 4 * self.width

        def block(before: int, after: int, resize: nn.Module | None = None) -> ResidualBlock:
            return ResidualBlock(before, after, time + condition, groups, resize)

        self.conv_in = nn.Conv2d(inputs, self.width, 3, padding=1)
        self.time_embedding = TimeEmbedding(self.width, time)
        # The parameters of the way up stand before those of the middle, an order that resumed trainings rely on.
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        before, skips = self.width, [self.width]
        for level, width in enumerate(channels):
            plain = [block(wide, width) for wide in (before, *[width] * (blocks - 1))]
            halving = [block(width, width, nn.AvgPool2d(2))] if level + 1 < len(channels) else []
            self.down_blocks.append(_level(resnets=plain, downsamplers=halving))
            skips += [width] * (blocks + len(halving))
            before = width
        first, attention, second = block(last, last), Attention(last, min(head_dim, last), groups), block(last, last)
        self.mid_block = _level(attentions=[attention], resnets=[first, second])
        for level, width in reversed(list(enumerate(channels))):
            joined = [block(wide + skips.pop(), width) for wide in (before, *[width] * blocks)]
            doubling = [block(width, width, Upsample())] if level else []
            self.up_blocks.append(_level(resnets=joined, upsamplers=doubling))
            before = width
        self.conv_norm_out = GroupNorm(groups, self.width)
        self.conv_out = zeroed(nn.Conv2d(self.width, outputs, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return (B, outputs, X, Y) for (B, inputs, X, Y) at timesteps (B,); all levels must divide X and Y."""
        time = self.time_embedding(timestep_features(t, self.width).to(x.dtype))
        time = F.silu(time if condition is None else torch.cat([time, condition.to(time.dtype)], dim=1))
        skips = [self.conv_in(x)]
        level: Any
        middle: Any = self.mid_block
        for level in self.down_blocks:
            for block in (*level["resnets"], *level["downsamplers"]):
                skips.append(block(skips[-1], time))
        first, second = middle["resnets"]
        x = second(middle["attentions"][0](first(skips[-1], time)), time)
        for level in self.up_blocks:
            for block in level["resnets"]:
                x = block(torch.cat([x, skips.pop()], dim=1), time)
            for block in level["upsamplers"]:
                x = block(x, time)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


def _level(**blocks: Sequence[nn.Module]) -> nn.ModuleDict:
    """Return the blocks of a level by the names that diffusers gives them."""
    return nn.ModuleDict({name: nn.ModuleList(held) for name, held in blocks.items()})


def build_unet(config: UNetSettings) -> UNet:
    """Return a new network; with the default settings it has the published 37,513,857 parameters.

    Raises:
        InputError: A size in ``config`` is not positive, or ``dim_mults`` is empty.
    """
    return UNet(config)
