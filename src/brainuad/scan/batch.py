"""Scans one after the other or several at a time, with one model in memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

from brainuad.data.registration import one_itk_thread
from brainuad.errors import InputError

logger = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")

# what scans can bring about; anything else is a fault of the program and ends the run
SCAN_ERRORS = (
    InputError,
    ArithmeticError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


def each(work: Callable[[T], R], scans: Sequence[T], jobs: int) -> Iterator[R]:
    """Yield what ``work`` makes of each scan as it is done.

    Args:
        work: Thread-safe.
        scans: What to work on.
        jobs: Scans at a time, in threads: the libraries that do the work let go of Python's lock.
    """
    # Set once: threads that set it back after each step would disturb each other.
    with one_itk_thread():
        if jobs == 1:
            yield from map(work, scans)
            return
        with ThreadPoolExecutor(jobs) as pool:
            futures = [pool.submit(work, scan) for scan in scans]
            try:
                for future in as_completed(futures):
                    yield future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                logger.warning("stopping when the scans in work are finished")
                raise
