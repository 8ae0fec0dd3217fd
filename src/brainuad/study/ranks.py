"""The processes of one evaluation: those that torchrun started, or a single one."""

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
PATIENCE = timedelta(days=7)  # a rank waits for the slowest; torchrun ends all of them when one dies


@dataclass(frozen=True)
class Ranks:
    """One of the processes that divide the work, by default the only one.

    Attributes:
        number: Its number, from 0.
        count: Number of processes.
    """

    number: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes the common results."""
        return self.number == 0

    def own_part(self, items: Sequence[T]) -> Sequence[T]:
        """Return this process's part of the items: every item belongs to one process."""
        return items[self.number :: self.count]

    def wait(self) -> None:
        """Wait until all processes have reached this point."""
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
        """Return the first process's value."""
        if self.count == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """Join the other processes, if torchrun has started some. Each uses the GPU with its local number."""
    if not dist.is_available() or not dist.is_torchelastic_launched():
        yield Ranks()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    dist.init_process_group("gloo", timeout=PATIENCE)  # gloo: messages are small and on the CPU
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
