"""Training volumes as one tensor on any device, and the slices drawn from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from brainuad.devices import upload
from brainuad.train.augmentation import augmentations_of, augmented_slices, dense_augmented_slices, draw_uniform


@dataclass(frozen=True)
class TrainingVolumes:
    """All training volumes, on one grid and one device.

    Attributes:
        images: (N, X, Y, Z) float32, in [0, 1] up to the overshoot of B-spline resampling.
        masks: (N, X, Y, Z) bool, True in the brain.
    """

    images: Tensor
    masks: Tensor

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def brain_slices(self) -> Tensor:
        """(N, Z) bool on the CPU: which axial slices contain brain."""
        return self.masks.any(dim=1).any(dim=1).cpu()

    def to(self, device: torch.device | str) -> TrainingVolumes:
        """Return the same volumes on ``device``."""
        return TrainingVolumes(self.images.to(device), self.masks.to(device))


def stack_volumes(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> TrainingVolumes:
    """Stack ``(image, brain mask)`` pairs of one shape (X, Y, Z).

    Raises:
        ValueError: There are none, shapes differ, or a mask is empty (no slice could be drawn).
    """
    if not pairs:
        raise ValueError("there are no volumes to stack")
    shape = np.shape(pairs[0][0])
    if len(shape) != 3:
        raise ValueError(f"volumes must be (X, Y, Z), not {shape}")
    images = torch.empty((len(pairs), *shape), dtype=torch.float32)
    masks = torch.empty((len(pairs), *shape), dtype=torch.bool)
    for index, (image, mask) in enumerate(pairs):
        if np.shape(image) != shape or np.shape(mask) != shape:
            raise ValueError(f"volume {index} is {np.shape(image)}, its mask {np.shape(mask)}; expected {shape}")
        images[index] = torch.from_numpy(np.array(image, dtype=np.float32))
        masks[index] = torch.from_numpy(np.array(mask, dtype=bool))
        if not masks[index].any():
            raise ValueError(f"the brain mask of volume {index} is empty")
    return TrainingVolumes(images, masks)


def draw_slice_indices(volumes: TrainingVolumes, indices: Tensor, generator: torch.Generator) -> Tensor:
    """Draw one axial slice of every indexed volume, uniformly among those that contain brain.

    The published system draws among all slices of the volume; empty ones teach the network nothing but black.

    Args:
        volumes: What to draw from.
        indices: (B,) int64 volume numbers.
        generator: Source of the draw. Keep it on the CPU: then a seed draws the same slices on every device,
            and nothing waits for an accelerator.

    Returns:
        (B,) int64 z indices, on the CPU.
    """
    brain = volumes.brain_slices[indices.cpu()]
    uniform = torch.rand(len(indices), generator=generator, device=generator.device).cpu()
    counts = brain.sum(dim=1)
    rank = (uniform * counts).long().minimum(counts - 1)
    # the first z at which more than `rank` brain slices have been seen
    return (brain.cumsum(dim=1) > rank[:, None]).int().argmax(dim=1)


def take_slabs(volumes: Tensor, indices: Tensor, slices: Tensor, neighbours: int = 0) -> Tensor:
    """Return axial slices ``slices[i]`` of volumes ``indices[i]`` with their neighbours.

    Args:
        volumes: (N, X, Y, Z), images or masks.
        indices: (B,) int64 volume numbers, on the volumes' device.
        slices: (B,) int64 z indices, there too.
        neighbours: Slices on each side; beyond the grid the outermost one is repeated.

    Returns:
        (B, 2 * neighbours + 1, X, Y).
    """
    beside = torch.arange(-neighbours, neighbours + 1, device=volumes.device)
    slabs = (slices[:, None] + beside).clamp(0, volumes.shape[3] - 1)
    return volumes[indices[:, None], :, :, slabs]


def draw_batch(
    volumes: TrainingVolumes, indices: Tensor, generator: torch.Generator, *, augment: bool
) -> dict[str, Tensor]:
    """Draw one axial slice of every indexed volume and how it is augmented.

    Args:
        volumes: What to draw from.
        indices: (B,) int64 volume numbers, on the CPU.
        generator: Source of every draw (see ``draw_slice_indices``).
        augment: Whether to draw an augmentation.

    Returns:
        "indices" and "slices", (B,) int64, and with ``augment`` "augmentation", (B, 31) float64 (see
        ``brainuad.train.augmentation.augmentations_of``), on the CPU.
    """
    drawn = {"indices": indices, "slices": draw_slice_indices(volumes, indices, generator)}
    return drawn | ({"augmentation": draw_uniform(len(indices), generator)} if augment else {})


def take_batch(
    volumes: TrainingVolumes, drawn: Mapping[str, Tensor], neighbours: int = 0, *, dense: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the slabs of a drawn batch and their brain masks, (B, S, X, Y) each, on the volumes' device.

    Augmented ones (TorchIO's random gamma, bias field, blur and ghosting, applied to the whole volume before slicing)
    are not clamped, as there.

    Args:
        volumes: What to take from.
        drawn: See ``draw_batch``; with ``dense`` on the volumes' device, else on the CPU.
        neighbours: Slices of a slab on each side of the drawn one.
        dense: Augment in operations of fixed shape. The result is the same up to rounding.

    Raises:
        ValueError: Slabs of several slices are to be augmented.
    """
    indices, slices = (upload(drawn[name], volumes.images.device) for name in ("indices", "slices"))
    masks = take_slabs(volumes.masks, indices, slices, neighbours)
    if "augmentation" not in drawn:
        return take_slabs(volumes.images, indices, slices, neighbours), masks
    if neighbours:
        raise ValueError("slabs of several slices cannot be augmented")
    uniform = drawn["augmentation"]
    if dense:
        images = dense_augmented_slices(volumes.images, indices, slices, uniform)
    else:
        images = augmented_slices(volumes.images, drawn["indices"], drawn["slices"], augmentations_of(uniform))
    return images[:, None], masks
