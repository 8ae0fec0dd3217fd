"""Paths in the paper's data layout."""

from __future__ import annotations

from brainuad.prepare.raw import RawScan


def place(scan: RawScan, kind: str) -> str:
    """Return the path of a scan's "t1", "t2", "flair", "mask", "labels" or "seg", relative to ``Data``."""
    base = "Train" if scan.dataset == "ixi" else "Test"
    return f"{base}/{scan.dataset}/{kind}/{scan.subject}_{kind}.nii.gz"
