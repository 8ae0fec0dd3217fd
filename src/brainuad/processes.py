"""Pools of processes that end with the one that started them, however it ends."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from typing import Any


def process_pool(count: int, start: Callable[..., None] | None = None, *given: Any) -> ProcessPoolExecutor:
    """Return a pool of fresh processes: forking one in which ITK or torch threads have run can deadlock.

    Args:
        count: Processes.
        start: Called with ``given`` in each before its work.
    """
    return ProcessPoolExecutor(
        count, mp_context=get_context("spawn"), initializer=_start, initargs=(start, given)
    )


def _start(start: Callable[..., None] | None, given: tuple[Any, ...]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if start is not None:
        start(*given)


def _end_with_parent() -> None:
    """End this process when its parent has: if that was killed, this one would wait for work for ever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
