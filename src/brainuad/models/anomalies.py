"""Synthetic anomalies in healthy slabs: what a restoration model learns to mark and to undo.

A shape is a warped ellipsoid with a soft edge; what fills it is of one of several families. The ideas are those of
foreign patch interpolation (Tan et al. 2020), CutPaste (Li et al. 2021) and DISYRE (Naval Marimont et al. 2024). The
code is our own.

Everything follows from uniform numbers that are drawn beforehand, in operations of fixed shape. So devices that get the
same numbers paint the same anomalies up to rounding, and on CUDA a whole training step can be one graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from brainuad.models.contrast import cut_noise

SLOTS = 3  # anomalies of a slab at most
PRESENT = (0.88, 0.5, 0.25)  # how likely there is a first, a second, a third one
NUMBERS = 32  # uniform numbers for one anomaly
SMALLEST, LARGEST, LARGEST_FURTHER = 0.9, 18.0, 6.0  # radii in voxels: of any, of the first, of further ones
NOTICEABLE = 0.04  # change of intensity below which nothing can be seen


@dataclass(frozen=True)
class Site:
    """Where an anomaly is put, and what its families make use of. The first axis of each is the slab.

    Attributes:
        images: (B, S, X, Y) slabs as they are so far.
        others: (B, S, X, Y) slabs of other subjects.
        shape: (B, S, X, Y) in [0, 1], the anomaly's soft shape.
        radii: (B, S, X, Y) distance from the centre, 1 at the anomaly's edge.
        texture: (B, 1, X, Y) noise of variance one.
        offsets: (B, 2, X, Y) in-plane distance from the centre in pixels.
        uniform: (B, N) numbers in [0, 1).
    """

    images: Tensor
    others: Tensor
    shape: Tensor
    radii: Tensor
    texture: Tensor
    offsets: Tensor
    uniform: Tensor

    def number(self, index: int, low: float, high: float) -> Tensor:
        """Return a number between two limits for each slab, (B, 1, 1, 1)."""
        return (low + (high - low) * self.uniform[:, index])[:, None, None, None]

    def sign(self, index: int) -> Tensor:
        """Return 1 or -1 for each slab, (B, 1, 1, 1)."""
        return torch.where(self.uniform[:, index] < 0.5, -1.0, 1.0)[:, None, None, None]

    def mean(self, images: Tensor) -> Tensor:
        """Return the mean of (B, S, X, Y) within the shape, (B, 1, 1, 1)."""
        within = self.shape.sum((1, 2, 3), keepdim=True).clamp(min=1e-6)
        return (images * self.shape).sum((1, 2, 3), keepdim=True) / within

    def rows(self, which: Tensor) -> Site:
        """Return the site of selected slabs."""
        return Site(**{field.name: getattr(self, field.name)[which] for field in fields(self)})


def _level(site: Site, low: int, mean: Tensor) -> Tensor:
    """Return an intensity that can be told from the mean."""
    level = site.number(low, 0.0, 1.1)
    apart = torch.where(level < mean, -0.15, 0.15)
    return torch.where((level - mean).abs() < 0.12, mean + apart, level)


def tissue(site: Site) -> Tensor:
    """Another tissue, mixed with what was there."""
    level = _level(site, 0, site.mean(site.images))
    opacity = site.number(1, 0.3, 1.0)
    return (1 - opacity) * site.images + opacity * (level + site.number(2, 0.0, 0.07) * site.texture)


def shift(site: Site) -> Tensor:
    """The same tissue, brighter or darker."""
    return site.images + site.sign(0) * site.number(1, 0.08, 0.5)


def classes(site: Site) -> Tensor:
    """One class of intensities brighter or darker, the others as they were."""
    window = (site.images - site.number(0, 0.1, 0.95)) / site.number(1, 0.08, 0.25)
    return site.images + site.sign(2) * site.number(3, 0.12, 0.5) * (-window.square()).exp()


def _moved(images: Tensor, site: Site, low: int) -> Tensor:
    """Return slabs rolled by up to a quarter of their size, half of them mirrored."""
    batch, _, width, height = images.shape
    device = images.device
    x = torch.arange(width, device=device) + ((site.uniform[:, low, None] - 0.5) * width / 2).long()
    y = torch.arange(height, device=device) + ((site.uniform[:, low + 1, None] - 0.5) * height / 2).long()
    x = x % width
    x = torch.where(site.uniform[:, low + 2, None] < 0.5, width - 1 - x, x)
    slab = torch.arange(batch, device=device)[:, None, None]
    return images.permute(0, 2, 3, 1)[slab, x[:, :, None], (y % height)[:, None]].permute(0, 3, 1, 2)


def _matched(patch: Tensor, site: Site, low: int) -> Tensor:
    """Return patches, half of them with the mean of what they cover, mixed with what was there."""
    mean = torch.where(site.number(low, 0, 1) < 0.5, site.mean(site.images) - site.mean(patch), 0.0)
    opacity = site.number(low + 1, 0.4, 1.0)
    return (1 - opacity) * site.images + opacity * (patch + mean)


def foreign(site: Site) -> Tensor:
    """Tissue of another subject, from another place."""
    return _matched(_moved(site.others, site, 0), site, 3)


def displaced(site: Site) -> Tensor:
    """Tissue of another place of the same brain."""
    return _matched(_moved(site.images, site, 0), site, 3)


def smooth(site: Site) -> Tensor:
    """Loss of structure."""
    padded = F.pad(site.images, (3, 3, 3, 3), mode="replicate")
    wide = F.avg_pool2d(padded, 7, stride=1)
    return wide + site.sign(0) * site.number(1, 0.0, 0.12)


def texture(site: Site) -> Tensor:
    """Texture where there was none."""
    return site.images + site.number(0, 0.06, 0.25) * site.texture


def rim(site: Site) -> Tensor:
    """A core and a rim of different intensities, as in tumours that take up contrast agent."""
    edge = site.number(0, 0.35, 0.85)
    core = torch.sigmoid((edge - site.radii) * 12)
    mean = site.mean(site.images)
    rim_level, core_level = _level(site, 1, mean), _level(site, 2, mean)
    return core * core_level + (1 - core) * rim_level + site.number(3, 0.0, 0.06) * site.texture


def mass(site: Site) -> Tensor:
    """Tissue pushed away from a centre, or drawn towards it."""
    _, _, width, height = site.images.shape
    fade = (1 - site.radii[:, site.radii.shape[1] // 2].square()).clamp(min=0)[:, None]
    moved = site.offsets * fade * site.sign(0) * site.number(1, 0.25, 0.7)
    base = F.affine_grid(
        torch.eye(2, 3, device=moved.device).expand(len(moved), 2, 3),
        [len(moved), 1, width, height],
        align_corners=False,
    )
    steps = torch.stack([moved[:, 1] * 2 / height, moved[:, 0] * 2 / width], dim=-1)
    return F.grid_sample(site.images, base + steps, padding_mode="border", align_corners=False)


FAMILIES: dict[str, tuple[float, Callable[[Site], Tensor]]] = {
    "tissue": (0.30, tissue),
    "shift": (0.12, shift),
    "classes": (0.10, classes),
    "foreign": (0.12, foreign),
    "displaced": (0.08, displaced),
    "smooth": (0.07, smooth),
    "texture": (0.06, texture),
    "rim": (0.09, rim),
    "mass": (0.06, mass),
}


def paint(
    images: Tensor,
    masks: Tensor,
    uniform: Tensor,
    bank: Tensor,
    families: Sequence[str] = tuple(FAMILIES),
    *,
    every_family: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """Put anomalies into healthy slabs.

    Args:
        images: (B, S, X, Y) slabs of S axial slices, in about [0, 1].
        masks: (B, S, X, Y) bool, the brain.
        uniform: (B, 3, 32) numbers in [0, 1).
        bank: See ``noise_bank``.
        families: Which of ``FAMILIES`` to choose from.
        every_family: Compute every family for every slab, as a graph needs it; by default on CUDA only. The result is
            the same.

    Returns:
        The slabs with anomalies, (B, S, X, Y), in about [0, 1]; and (B, X, Y) bool, what was visibly changed in the
        middle slice.
    """
    every_family = images.is_cuda if every_family is None else every_family
    middle = images.shape[1] // 2
    brain = masks[:, middle].flatten(1)
    ranks, sizes = brain.cumsum(1), brain.sum(1)
    others = images.roll(1, 0)
    painted, lesion = images, torch.zeros_like(masks[:, middle])
    bounds = _bounds(tuple(families), str(images.device))
    for slot in range(SLOTS):
        numbers = uniform[:, slot]
        site, offered = _site(painted, others, masks, numbers, bank, slot, (ranks, sizes))
        family = torch.bucketize(numbers[:, 1].contiguous(), bounds, right=True)
        content = painted
        for index, name in enumerate(families):
            chosen = family == index
            if every_family:
                content = torch.where(chosen[:, None, None, None], FAMILIES[name][1](site), content)
            elif chosen.any():
                which = chosen.nonzero()[:, 0]
                content = content.index_copy(0, which, FAMILIES[name][1](site.rows(which)))
        present = (offered & (sizes > 0))[:, None, None, None]
        after = torch.where(present, painted + site.shape * (content - painted), painted).clamp(-0.2, 1.5)
        change = (after[:, middle] - painted[:, middle]).abs()
        inside = site.shape[:, middle] > 0.5
        # an anomaly of which hardly anything can be seen is none
        visible = (change > NOTICEABLE) & inside
        enough = visible.sum((1, 2)) > 0.3 * inside.sum((1, 2))
        lesion = lesion | (inside & (enough & present[:, 0, 0, 0])[:, None, None])
        painted = torch.where(masks, after, painted)
    return painted, lesion & masks[:, middle]


@lru_cache(maxsize=32)
def _bounds(families: tuple[str, ...], device: str) -> Tensor:
    """Return where in [0, 1) one family ends and the next begins; sent to a device once, for a graph cannot send it."""
    shares = torch.tensor([FAMILIES[name][0] for name in families])
    return (shares.cumsum(0) / shares.sum())[:-1].to(device)


def _site(
    images: Tensor,
    others: Tensor,
    masks: Tensor,
    numbers: Tensor,
    bank: Tensor,
    slot: int,
    brain: tuple[Tensor, Tensor],
) -> tuple[Site, Tensor]:
    """Return where a slot's anomalies go, and which slabs (B,) get one."""
    _, slices, width, height = images.shape
    device = images.device
    ranks, sizes = brain
    rank = (numbers[:, 2] * sizes).long() + 1
    voxel = (ranks < rank[:, None]).sum(1).clamp(max=width * height - 1)  # the rank-th of the brain's pixels
    largest = LARGEST if slot == 0 else LARGEST_FURTHER
    radius = SMALLEST * (largest / SMALLEST) ** numbers[:, 3]
    stretch = torch.exp(1.2 * (numbers[:, 4:7] - 0.5))
    angle = math.pi * numbers[:, 7]
    x = (torch.arange(width, device=device) - (voxel // height)[:, None])[:, :, None].float()
    y = (torch.arange(height, device=device) - (voxel % height)[:, None])[:, None].float()
    depth = (2 * numbers[:, 8, None] - 1) * radius[:, None].clamp(max=3)
    z = torch.arange(slices, device=device) - slices // 2 - depth
    cos, sin = (value[:, None, None] for value in (angle.cos(), angle.sin()))
    along = (x * cos + y * sin) * stretch[:, 0, None, None]
    across = (y * cos - x * sin) * stretch[:, 1, None, None]
    deep = (z * stretch[:, 2, None])[:, :, None, None]
    radii = (along.square() + across.square())[:, None].add(deep.square()).sqrt()
    radii = radii / radius[:, None, None, None]
    warp = cut_noise(bank, numbers[:, 9:13], (0.6 * radius).clamp(min=2), (width, height))
    strength = torch.where(radius > 2, 0.35, 0.0)[:, None, None]
    radii = radii * (1 + strength * warp).clamp(0.5, 1.7)[:, None]
    softness = (0.03 + 0.37 * numbers[:, 13]) / (0.25 * radius).clamp(min=1)
    shape = torch.sigmoid((1 - radii) / softness.clamp(min=0.03)[:, None, None, None]) * masks
    fine = cut_noise(bank, numbers[:, 14:18], 1 + 3 * numbers[:, 18], (width, height))[:, None]
    offsets = torch.stack([x.expand(-1, -1, height), y.expand(-1, width, -1)], dim=1)
    site = Site(images, others, shape, radii, fine, offsets, numbers[:, 19:])
    return site, numbers[:, 0] < PRESENT[slot]
