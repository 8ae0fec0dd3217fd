"""Tables of scored scans, read back."""

from __future__ import annotations

import csv
from pathlib import Path


def table(folder: Path, name: str = "scores.csv") -> list[dict[str, str]]:
    """Return the rows of a table in a folder of results."""
    with (folder / name).open(newline="") as handle:
        return list(csv.DictReader(handle))
