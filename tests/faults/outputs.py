"""What a command has written, without what differs between two runs that nobody disturbed."""

from __future__ import annotations

import csv
import fnmatch
import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import torch

# Files that may differ, and why.
FILES = {
    "*.log": "messages with their times",
    "*.lock": "empty; says that a table was brought up to date",
    "out/progress*.jsonl": "work done, in the order in which it was done; what is made of it is compared",
    "*/evaluation/progress*.jsonl": "the same",
    "*histograms/*": "counts of the scores that were measured at one go, which a kill splits in two",
    "cache/*": "may be emptied at any time",
}
# Entries of JSON files and columns of tables that may differ, and why.
ENTRIES = {"seconds": "durations", "started": "a time", "counts": "how many were skipped, as done before"}
TABLE_ENTRIES = {"prepare.csv": {"status": "'prepared', or 'skipped' as done before"}}


def outputs(folder: Path) -> dict[str, Any]:
    """Return what is in the files below a folder, by their path in it."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not any(fnmatch.fnmatch(name, pattern) for pattern in FILES):
            found[name] = contents(path, folder)
    return found


def left_behind(folder: Path) -> list[Path]:
    """Return temporary files, in the cache too."""
    return sorted(folder.rglob(".partial-*"))


def contents(path: Path, folder: Path) -> Any:
    """Return what a file holds, as something that compares."""
    raw = path.read_bytes()
    if path.suffix == ".gz":
        return gzip.decompress(raw)
    if path.suffix == ".ckpt":
        return plain(dict(torch.load(path, weights_only=True)))
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return plain(dict(arrays))
    if path.suffix == ".dcm":
        dataset = pydicom.dcmread(path)
        return dataset.PixelData, [str(segment.SegmentLabel) for segment in dataset.SegmentSequence]
    if path.suffix in (".png", ".safetensors"):
        return raw
    text = raw.decode().replace(str(folder), "FOLDER")
    if path.suffix == ".html":  # lists the entries of JSON files
        return re.sub(r'<tr><th scope="row">seconds\.\w+</th><td>[^<]*</td></tr>', "", text).splitlines()
    if path.suffix == ".json":
        return plain(json.loads(text))
    if path.suffix == ".csv":
        ignored = {*ENTRIES, *TABLE_ENTRIES.get(path.name, ())}
        return [
            {name: value for name, value in row.items() if name not in ignored}
            for row in csv.DictReader(text.splitlines())
        ]
    return text.splitlines()


def plain(value: Any) -> Any:
    """Return nested values without ``ENTRIES``, and arrays as bytes."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items() if name not in ENTRIES}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().view(-1).numpy().tobytes()
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    return value


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Return what differs between two folders, a line each."""
    lines = [f"{name}: missing" for name in expected.keys() - found.keys()]
    lines += [f"{name}: nobody expects it" for name in found.keys() - expected.keys()]
    for name in sorted(found.keys() & expected.keys()):
        if found[name] != expected[name]:
            lines.append(f"{name}: {_unlike(found[name], expected[name])}")
    return sorted(lines)


def _unlike(found: Any, expected: Any) -> str:
    if isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        return next(_unlike(a, b) for a, b in zip(found, expected, strict=True) if a != b)
    if isinstance(found, dict) and isinstance(expected, dict) and found.keys() == expected.keys():
        name = next(name for name in found if found[name] != expected[name])
        return f"{name}: {_unlike(found[name], expected[name])}"
    return f"{str(found)[:200]} instead of {str(expected)[:200]}"
