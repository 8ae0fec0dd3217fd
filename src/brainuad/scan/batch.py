"""Process scans in turn or in parallel, with one model in memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

from brainuad.data.registration import two_itk_threads
from brainuad.errors import InputError

logger = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")

# errors that a scan can cause; any other is a fault of the program and ends the run
SCAN_ERRORS = (InputError, ArithmeticError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError)


def each(work: Callable[[T], R], scans: Sequence[T], jobs: int) -> Iterator[R]:
    """Yield the result of ``work`` for each scan, in the order in which they finish.

    Args:
        work: Function of a scan; must be thread-safe.
        scans: Scans to process.
        jobs: Number of threads, each with one scan. The libraries that compute release Python's lock.
    """
    # Set once: threads that set it back after each step would disturb each other.
    with two_itk_threads():
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
