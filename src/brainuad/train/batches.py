"""Which slices are in a batch, on which device, and the random numbers of a step.

Every random draw of a step is a function of (seed, step) alone.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from brainuad.config import ExperimentConfig
from brainuad.errors import InputError
from brainuad.train.slices import TrainingVolumes

VALIDATION_SLICES = 4  # of every validation volume


def seeded_generator(seed: int, stream: str, index: int) -> torch.Generator:
    """Return a generator whose draws depend on these arguments only.

    It is on the CPU, so that every device sees the same draws.

    Args:
        seed: The experiment's seed.
        stream: What is drawn; different streams are independent.
        index: Step or epoch.
    """
    digest = hashlib.sha256(f"{seed}/{stream}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def count_batches(volumes: int, config: ExperimentConfig) -> int:
    """Return the steps of one epoch, after ``limit_train_batches``.

    Raises:
        InputError: The limit leaves none, or is above 1.0.
    """
    batches = math.ceil(volumes / config.datamodule.cfg.batch_size)
    limit = config.trainer.limit_train_batches
    count = int(batches * limit) if isinstance(limit, float) else min(batches, int(limit))
    if not 0 < count <= batches:
        fault = f"{limit} of {batches} batches is {count}"
        raise InputError("trainer.limit_train_batches", fault, "Give a number, or a fraction up to 1.0")
    return count


def batch_indices(volumes: int, batch_size: int, batches_per_epoch: int, seed: int, step: int) -> Tensor:
    """Return the volumes of a step: (B,) int64, B <= ``batch_size``.

    Every epoch is a new permutation. A batch that is larger than the cohort is an epoch by itself, and takes as many
    permutations as it needs.
    """
    epoch, position = divmod(step, batches_per_epoch)
    generator = seeded_generator(seed, "order", epoch)
    repeats = math.ceil(batch_size / volumes)
    order = torch.cat([torch.randperm(volumes, generator=generator) for _ in range(repeats)])
    order = order[: max(volumes, batch_size)]
    return order[position * batch_size : (position + 1) * batch_size]


def device_share(size: int, devices: int, rank: int) -> tuple[slice, float]:
    """Return which rows of a batch of ``size`` a device works on, and the weight of their mean loss.

    The mean over devices of the weighted losses is the mean over the batch. A device without a row, where an epoch's
    last batch is smaller than the number of devices, works on the first row with weight 0.
    """
    start, stop = (min(r, size % devices) + r * (size // devices) for r in (rank, rank + 1))
    weight = (stop - start) * devices / size
    return (slice(start, stop) if stop > start else slice(0, 1)), weight


def validation_slices(volumes: TrainingVolumes) -> tuple[Tensor, Tensor]:
    """Choose slices spread evenly over the brain of every volume.

    Returns:
        (N * VALIDATION_SLICES,) int64 each: volume numbers and axial slice numbers.
    """
    fractions = (torch.arange(VALIDATION_SLICES) + 0.5) / VALIDATION_SLICES
    brains = [torch.nonzero(brain)[:, 0] for brain in volumes.brain_slices]
    slices = [brain[(fractions * len(brain)).long()] for brain in brains]
    return torch.arange(len(volumes)).repeat_interleave(VALIDATION_SLICES), torch.cat(slices)
