"""Store finished work on disk, so that a rerun skips it."""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from brainuad.errors import InputError
from brainuad.evaluation import ScoreHistogram
from brainuad.files import atomic_path


class Progress:
    """Finished work by key, one JSON object per line in an append-only file.

    Only the keys and the positions of their values are kept in memory, some 200 bytes each. Each process writes its own
    file, "progress-1.jsonl" beside "progress.jsonl", and reads all of them. One that cannot be read or written raises
    an InputError.
    """

    def __init__(self, path: Path, rank: int = 0) -> None:
        self.path = path.with_stem(f"{path.stem}-{rank}") if rank else path
        self._pattern = f"{path.stem}*{path.suffix}"
        self._places: dict[str, tuple[Path, int]] = {}  # file and offset of the line
        self.read()

    def read(self) -> None:
        """Read the keys in all files, including those of other processes."""
        for path in sorted(self.path.parent.glob(self._pattern)):
            try:
                with path.open("rb") as handle:
                    start = 0
                    for line in handle:
                        with suppress(ValueError, TypeError, LookupError):
                            # a line cut off by the end of its process does not count: its work is done again
                            self._places[_entry(line)[0]] = path, start
                        start += len(line)
            except OSError as error:
                raise InputError(path, f"cannot be read ({error})", "Remove it to start anew") from error

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def get(self, key: str) -> Any:
        """Return the value of a key, None where there is none or its line has been overwritten since."""
        if key not in self._places:
            return None
        path, start = self._places[key]
        try:
            with path.open("rb") as handle:
                handle.seek(start)
                line = handle.readline()
        except OSError as error:
            raise InputError(path, f"cannot be read ({error})", "Remove it to start anew") from error
        with suppress(ValueError, TypeError, LookupError):
            found, value = _entry(line)
            if found == key:
                return value
        return None

    def put(self, key: str, value: Any) -> None:
        """Store a JSON value."""
        line = json.dumps({"key": key, "value": value}, allow_nan=False)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as handle:
                start = handle.seek(0, os.SEEK_END) + 1
                # Begin with a line break, in case the previous line was cut off.
                handle.write(f"\n{line}\n".encode())
        except OSError as error:
            raise InputError(self.path, f"cannot be written ({error.strerror})", "Choose another folder") from error
        self._places[key] = self.path, start


def _entry(line: bytes) -> tuple[str, Any]:
    """Return the key and the value of a line; a ValueError, TypeError or LookupError if it is none, or incomplete."""
    entry = json.loads(line)
    return entry["key"], entry["value"]


def write_histograms(path: Path, histograms: Mapping[str, ScoreHistogram]) -> None:
    """Write counts by name as ``np.savez_compressed`` does, in a sixth of its time: some 20 kB a map."""
    arrays = {
        f"{name} {part}": array.astype(np.uint32) if array.dtype == np.int64 else array
        for name, histogram in histograms.items()
        for part, array in histogram.to_arrays().items()
    }
    with (
        atomic_path(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
    ):
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)


def read_histograms(path: Path) -> dict[str, ScoreHistogram]:
    """Return the counts of a file of `write_histograms`; {} if it is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = dict(stored)
        names = dict.fromkeys(name.rsplit(" ", 1)[0] for name in arrays)
        parts = ("scores", "lesion", "healthy")
        return {name: ScoreHistogram.from_arrays({part: arrays[f"{name} {part}"] for part in parts}) for name in names}
    except (OSError, ValueError, EOFError, LookupError, zipfile.BadZipFile):
        return {}


def without_nan(value: Any) -> Any:
    """Return a JSON value with None for every NaN, which JSON lacks."""
    if isinstance(value, Mapping):
        return {str(name): without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
