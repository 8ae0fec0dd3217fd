"""Convolutional networks that see part of a slice: what is hidden stays zero and is left out of the statistics.

A convolution fills in zeros from their neighbours. So its output, once it is normalised, is multiplied by the mask of
what is shown. Such layers do what submanifold sparse convolutions do (SparK, Tian et al. 2023).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

Shown = Mapping[tuple[int, int], Tensor]  # by the size (X, Y) of a level: (B, 1, X, Y), 1 where it is shown


def shown_by_level(cells: Tensor, size: tuple[int, int], stride: int) -> dict[tuple[int, int], Tensor]:
    """Return what is shown at every level of a network that halves the resolution again and again.

    Args:
        cells: (B, x, y) bool, which cells of ``stride`` by ``stride`` pixels are shown; x and y are those of the
            slice divided by ``stride``, rounded up.
        size: (X, Y) of the slice.
        stride: A power of two.

    Returns:
        Masks (B, 1, X', Y') float32 by their size (X', Y'), from the slice itself to ``cells``.
    """
    width, height = size
    pixels = cells.float().repeat_interleave(stride, 1).repeat_interleave(stride, 2)[:, None, :width, :height]
    steps = [2**level for level in range(stride.bit_length())]
    levels = [pixels[:, :, ::step, ::step] for step in steps]
    return {(level.shape[2], level.shape[3]): level for level in levels}


def keep(x: Tensor, shown: Shown | None) -> Tensor:
    """Return features (B, C, X, Y) with zeros where the slice is hidden; all of them where nothing is."""
    return x if shown is None else x * shown[x.shape[2], x.shape[3]].to(x.dtype)


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation whose statistics are those of the pixels that are shown, where some are hidden."""

    def forward(self, x: Tensor, shown: Shown | None = None) -> Tensor:
        """Return (B, C, X, Y), normalised and then zero where the slice is hidden."""
        if shown is None or not self.training:
            return keep(super().forward(x), shown)
        wide, mask = x.float(), shown[x.shape[2], x.shape[3]]
        mean, variance, count = _moments(wide, mask, (0, 2, 3))
        unbiased = variance * count / (count - 1).clamp(min=1)
        with torch.no_grad():
            for running, measured in ((self.running_mean, mean), (self.running_var, unbiased)):
                assert running is not None
                running.lerp_(measured.flatten(), self.momentum or 0.0)
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
        normal = (wide - mean) * (variance + self.eps).rsqrt()
        scaled = normal * self.weight[:, None, None] + self.bias[:, None, None]
        return (scaled * mask).to(x.dtype)


class GroupNorm(nn.GroupNorm):
    """Group normalisation whose statistics are those of the pixels that are shown, where some are hidden."""

    def forward(self, x: Tensor, shown: Shown | None = None) -> Tensor:
        """Return (B, C, X, Y), normalised and then zero where the slice is hidden."""
        if shown is None:
            return super().forward(x)
        groups, mask = x.float().unflatten(1, (self.num_groups, -1)), shown[x.shape[2], x.shape[3]]
        mean, variance, _ = _moments(groups, mask[:, None].expand(-1, -1, groups.shape[2], -1, -1), (2, 3, 4))
        normal = ((groups - mean) * (variance + self.eps).rsqrt()).flatten(1, 2)
        scaled = normal * self.weight[:, None, None] + self.bias[:, None, None]
        return (scaled * mask).to(x.dtype)


def _moments(x: Tensor, mask: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, variance and number of the values that are shown, over some axes, which are kept."""
    count = mask.sum(axes, keepdim=True).clamp(min=1)
    mean = (x * mask).sum(axes, keepdim=True) / count
    return mean, ((x - mean).square() * mask).sum(axes, keepdim=True) / count, count
