"""The processes that share one evaluation: those that torchrun started, or one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # a rank waits for the slowest; torchrun ends them all when one dies


@dataclass(frozen=True)
class Ranks:
    """One process among those that share the work, by default the only one.

    Attributes:
        number: Its number, from 0.
        count: How many there are.
    """

    number: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether it is the one that writes what belongs to all."""
        return self.number == 0

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Return the items that fall to this process: every item falls to one."""
        return items[self.number :: self.count]

    def wait(self) -> None:
        """Wait until all have come this far."""
        if self.count > 1:
            dist.barrier()

    def gathered(self, items: Sequence[T]) -> list[T]:
        """Return the items of all processes."""
        if self.count == 1:
            return list(items)
        lists: list[list[T]] = [[] for _ in range(self.count)]
        dist.all_gather_object(lists, list(items))
        return [item for found in lists for item in found]

    def agreed(self, value: T) -> T:
        """Return the first one's value."""
        if self.count == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """Join the other processes, where torchrun has started some; each takes the GPU of its number on its machine."""
    if not dist.is_available() or not dist.is_torchelastic_launched():
        yield Ranks()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    dist.init_process_group("gloo", timeout=PATIENCE)  # what they tell each other is small, and on processors
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
