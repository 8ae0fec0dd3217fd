"""The layers of the network.

Of group norm and upsampling a compiler makes few passes over memory, where PyTorch's own would cost a GPU many. Without
a compiler they are PyTorch's. These are the same functions of the same weights; results differ by rounding.
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)
LONGEST = 10_000  # period of the slowest feature of a timestep, over 2 pi


class GroupNorm(nn.GroupNorm):
    """Group normalisation (Wu & He 2018).

    Compiled, it sums every channel over the slice before it joins the channels of a group. With channels last in memory
    that reads whole lines of it; the channels of one group alone, few numbers each, would cost the bandwidth several
    times over. The variance is the mean square less the squared mean, in float32: where a group's mean is 30 times its
    deviation the result is right to 3e-4, at 300 times to 3e-2. In the shipped model it is up to 3 times.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, ...) with the mean 0 and the variance 1 of each group of channels, scaled and shifted."""
        if not torch.compiler.is_compiling():
            return super().forward(x)
        place = tuple(range(2, x.ndim))
        wide = x.float()
        mean, square = (
            channels.unflatten(1, (self.num_groups, -1)).mean(2, keepdim=True)
            for channels in (wide.mean(place), wide.square().mean(place))
        )
        scale = (square - mean.square()).clamp(min=0).add(self.eps).rsqrt()
        weight, bias = (part.float().unflatten(0, (self.num_groups, -1)) for part in (self.weight, self.bias))
        scale = scale * weight
        shift = bias - mean * scale
        scale, shift = (part.flatten(1).reshape(*x.shape[:2], *[1] * len(place)) for part in (scale, shift))
        return (wide * scale + shift).to(x.dtype)


class Upsample(nn.Module):
    """Every pixel four times.

    Compiled, it keeps channels last in memory, and its gradient is a sum of four numbers, where interpolation scatters
    them one by one.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, 2 X, 2 Y) for (B, C, X, Y)."""
        if not torch.compiler.is_compiling():
            return F.interpolate(x, scale_factor=2.0, mode="nearest")
        batch, channels, height, width = x.shape
        rows = x.permute(0, 2, 3, 1)[:, :, None, :, None]
        wide = rows.expand(batch, height, 2, width, 2, channels).reshape(batch, 2 * height, 2 * width, channels)
        return wide.permute(0, 3, 1, 2)


class ResidualBlock(nn.Module):
    """Two convolutions, the second scaled and shifted by the noise level, added to their input.

    That of BigGAN (Brock et al. 2019) as Dhariwal & Nichol (2021) took it up. A new one returns what its shortcut does.

    Args:
        inputs: Channels that come in.
        outputs: Channels that go out.
        time: Width of the time embedding.
        groups: Of the group norms.
        resize: Changes the resolution, after the first activation and in the shortcut.
    """

    def __init__(self, inputs: int, outputs: int, time: int, groups: int, resize: nn.Module | None = None) -> None:
        super().__init__()
        self.norm1 = GroupNorm(groups, inputs)
        self.resize = resize or nn.Identity()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time_emb_proj = nn.Linear(time, 2 * outputs)
        self.norm2 = GroupNorm(groups, outputs)
        self.conv2 = zeroed(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.conv_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Return (B, outputs, X', Y') for (B, inputs, X, Y) and the activated time embedding (B, time)."""
        hidden = self.conv1(self.resize(F.silu(self.norm1(x))))
        scale, shift = self.time_emb_proj(time)[:, :, None, None].chunk(2, dim=1)
        hidden = self.norm2(hidden) * (1 + scale) + shift
        return self.conv_shortcut(self.resize(x)) + self.conv2(F.silu(hidden))


class Attention(nn.Module):
    """Self-attention between the pixels of a slice (Vaswani et al. 2017), added to its input; a new one adds nothing.

    Args:
        channels: In and out.
        head_dim: Channels of a head; as many heads as fit.
        groups: Of the group norm.
    """

    def __init__(self, channels: int, head_dim: int, groups: int) -> None:
        super().__init__()
        self.heads = channels // head_dim
        inner = self.heads * head_dim
        self.group_norm = GroupNorm(groups, channels)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, inner) for _ in range(3))
        self.to_out = nn.Sequential(zeroed(nn.Linear(inner, channels)))

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, X, Y) for (B, C, X, Y)."""
        pixels = self.group_norm(x.flatten(2)).transpose(1, 2)
        query, key, value = (
            project(pixels).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for project in (self.to_q, self.to_k, self.to_v)
        )
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return self.to_out(mixed).transpose(1, 2).reshape(x.shape) + x


class TimeEmbedding(nn.Module):
    """A perceptron that brings features of a timestep to the width of an embedding."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(inputs, outputs), nn.Linear(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outputs) for (B, inputs)."""
        return self.linear_2(F.silu(self.linear_1(x)))


def timestep_features(t: Tensor, width: int) -> Tensor:
    """Return cosines and sines of timesteps (B,) at falling frequencies, (B, width) float32 (Ho et al. 2020)."""
    half = width // 2
    frequencies = torch.exp(-math.log(LONGEST) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t[:, None].float() * frequencies
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, width % 2))


def zeroed(layer: M) -> M:
    """Return a layer with all weights set to zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
