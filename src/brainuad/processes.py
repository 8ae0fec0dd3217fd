"""Processes: how this one keeps its memory, and pools of others that end with it, however it ends."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

R = TypeVar("R")
_GIGABYTE = 1 << 30
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt, from malloc.h of the GNU C library


def keep_freed_memory() -> None:
    """Let the GNU C library reuse large blocks, up to a gigabyte, that it would return to the system; else do nothing.

    Networks that work on whole volumes free and take hundreds of megabytes layer by layer. The system hands out every
    page anew and zeroed, which took a quarter of the time of a scan's brain extraction.
    """
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        with suppress(AttributeError):  # another C library
            for parameter in (_MMAP_THRESHOLD, _TRIM_THRESHOLD):
                library.mallopt(parameter, _GIGABYTE)


def process_pool(count: int, start: Callable[..., None] | None = None, *given: Any) -> ProcessPoolExecutor:
    """Return a pool of spawned processes: forking a process that has run ITK or torch threads can deadlock.

    Args:
        count: Number of processes.
        start: Called with ``given`` in each process before its work.
    """
    return ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_start, initargs=(start, given))


def run_each(
    pool: ProcessPoolExecutor, work: Callable[..., R], arguments: Iterable[tuple[Any, ...]], done: Callable[[R], None]
) -> None:
    """Call ``work`` with each of the arguments, and ``done`` with each result as it comes; errors cancel the rest."""
    try:
        for future in as_completed([pool.submit(work, *given) for given in arguments]):
            done(future.result())
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise


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
