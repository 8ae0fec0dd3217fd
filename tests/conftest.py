"""Settings of all tests."""

import logging
import os
from collections import defaultdict
from pathlib import Path

import pytest

# The suite runs in several processes; threads of each would only get in the others' way. Set before torch is imported.
for name in (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
):
    os.environ.setdefault(name, "1")
os.environ.setdefault("MPLBACKEND", "Agg")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slowest files first: processes that take one file after another then end together."""
    seconds: defaultdict[Path, int] = defaultdict(int)
    for item in items:
        if marker := item.get_closest_marker("slow"):
            seconds[item.path] += marker.kwargs.get("seconds", 10)
    items.sort(key=lambda item: -seconds[item.path])


@pytest.fixture(autouse=True)
def _log_level() -> None:
    """Undo what commands that ran in this process have set for it."""
    logging.getLogger("brainuad").setLevel(logging.NOTSET)
