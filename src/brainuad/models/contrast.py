"""The look of a slab as another scanner or sequence would give it, and the noise that it and anomalies are made of.

Contrast is randomised as in SynthSeg (Billot et al. 2023); the code is our own. Everything follows from uniform numbers
that are drawn beforehand, in operations of fixed shape (see `brainuad.models.anomalies`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

CONTRAST_NUMBERS = 26  # uniform numbers for the contrast of one slab
KNOTS = 6  # pieces of a contrast curve
BANK_FIELDS, BANK_SIZE = 64, 128


def noise_bank() -> Tensor:
    """Return fixed fields of white noise, (64, 1, 128, 128), from which all smooth and textured noise is cut."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(BANK_FIELDS, 1, BANK_SIZE, BANK_SIZE, generator=generator)


def cut_noise(bank: Tensor, uniform: Tensor, cell: Tensor, size: Sequence[int]) -> Tensor:
    """Cut noise of a given correlation length out of the bank, with a variance of about one.

    Args:
        bank: See ``noise_bank``.
        uniform: (N, 4) numbers in [0, 1): the field, its orientation and the place.
        cell: (N,) correlation length in pixels, 1 or more.
        size: (X, Y) pixels.

    Returns:
        (N, X, Y).
    """
    which = (uniform[:, 0] * len(bank)).long()
    angle = uniform[:, 1] * (2 * math.pi)
    extents = [length / (cell * BANK_SIZE) for length in size]  # share of the field that is seen
    slack = [(1 - extent).clamp(min=0) * (2 * uniform[:, 2 + axis] - 1) for axis, extent in enumerate(extents)]
    cos, sin = angle.cos(), angle.sin()
    # affine_grid's first coordinate runs along the last axis
    rows = [cos * extents[1], -sin * extents[0], slack[1], sin * extents[1], cos * extents[0], slack[0]]
    theta = torch.stack(rows, dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, [len(uniform), 1, *size], align_corners=False)
    field = F.grid_sample(bank[which], grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return field[:, 0] * 1.5  # interpolation between independent numbers takes a third of the deviation


def random_contrast(
    images: Sequence[Tensor], masks: Tensor, uniform: Tensor, bank: Tensor, inverted: float
) -> list[Tensor]:
    """Give slabs the look of another scanner or sequence: a contrast curve, a bias field, blur and noise.

    Args:
        images: Versions of the same slabs, (B, S, X, Y) each, in about [0, 1]; each gets the same look.
        masks: (B, S, X, Y) bool, the brain.
        uniform: (B, 26) numbers in [0, 1).
        bank: See ``noise_bank``.
        inverted: Share of slabs whose contrast curve need not rise, so that dark tissue may become bright.

    Returns:
        The versions, 0 outside the brain.
    """
    width, height = masks.shape[2:]
    free = uniform[:, 0] < inverted
    rising = torch.cat([torch.zeros_like(uniform[:, :1]), uniform[:, 1 : 1 + KNOTS]], dim=1).sort(1).values
    rising = (rising - rising[:, :1]) / (rising[:, -1:] - rising[:, :1]).clamp(min=0.05)
    line = torch.linspace(0, 1, KNOTS + 1, device=masks.device)
    strength = torch.where(uniform[:, 7] < 0.8, 0.5, 0.0)[:, None]
    rising = strength * rising + (1 - strength) * line
    falling = torch.linspace(1, 0.15, KNOTS + 1, device=masks.device)
    spread = torch.where(uniform[:, 8] < 0.5, 0.25, 1.0)[:, None]
    any_way = (1 - spread) * falling + spread * torch.cat([uniform[:, 7:8], uniform[:, 1 : 1 + KNOTS]], dim=1)
    any_way = any_way - any_way.amin(1, keepdim=True)
    any_way = any_way / any_way.amax(1, keepdim=True).clamp(min=0.05) * (0.85 + 0.25 * uniform[:, 9, None])
    knots = torch.where(free[:, None], any_way, rising)
    slopes = (knots[:, 1:] - knots[:, :-1]) * KNOTS
    power = torch.exp(torch.where(uniform[:, 10] < 0.5, uniform[:, 11] - 0.5, 0.0))[:, None, None, None]
    bias = cut_noise(bank, uniform[:, 12:16], 25 + 30 * uniform[:, 16], (width, height))[:, None]
    bias = 1 + torch.where(uniform[:, 17] < 0.6, 0.12, 0.0)[:, None, None, None] * bias
    blur = torch.where(uniform[:, 18] < 0.3, uniform[:, 19], 0.0)[:, None, None, None]
    noise = cut_noise(bank, uniform[:, 20:24], 1 + uniform[:, 9], (width, height))[:, None]
    noise = noise * torch.where(uniform[:, 19] < 0.6, 0.05 * uniform[:, 11], 0.0)[:, None, None, None]
    # The darkest percent of a brain is scaled to 0. How dark that is, the rim decides that brain extraction leaves.
    lift = torch.where(uniform[:, 24] < 0.5, 0.45 * uniform[:, 25], 0.0)[:, None, None, None]
    looks = []
    for image in images:
        curve = knots[:, 0].view(-1, 1, 1, 1)
        for piece in range(KNOTS):
            rise = (image - piece / KNOTS).clamp(0, 1 / KNOTS if piece < KNOTS - 1 else 2)
            curve = curve + slopes[:, piece].view(-1, 1, 1, 1) * rise
        curve = torch.copysign(curve.abs().clamp(min=1e-6) ** power, curve) * bias
        wide = F.avg_pool2d(F.pad(curve, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        look = curve + blur * (wide - curve) + noise
        looks.append(torch.where(masks, lift + (1 - lift) * look, 0.0))
    return looks
