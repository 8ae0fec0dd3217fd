"""Pools of processes that end with their parent process, however it ends."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from typing import Any


def process_pool(count: int, start: Callable[..., None] | None = None, *given: Any) -> ProcessPoolExecutor:
    """Return a pool of spawned processes: forking a process that has run ITK or torch threads can deadlock.

    Args:
        count: Number of processes.
        start: Called with ``given`` in each process before its work.
    """
    return ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_start, initargs=(start, given))


def _start(start: Callable[..., None] | None, given: tuple[Any, ...]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if start is not None:
        start(*given)


def _end_with_parent() -> None:
    """End this process with its parent; otherwise it would wait for work for ever after the parent is killed."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
