"""Raw scans as they are downloaded: one function a data set, each returning `RawScan` rows."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from pathlib import Path

from brainuad.errors import InputError
from brainuad.prepare.raw.atlas_v2 import atlas_v2
from brainuad.prepare.raw.brats21 import brats21
from brainuad.prepare.raw.ixi import ixi
from brainuad.prepare.raw.manifest import manifest
from brainuad.prepare.raw.mslub import mslub
from brainuad.prepare.raw.scan import RawScan
from brainuad.prepare.raw.splits import with_splits
from brainuad.prepare.raw.wmh import wmh

__all__ = ["DATASETS", "RawScan", "raw_scans"]

logger = logging.getLogger(__name__)

DATASETS: dict[str, Callable[[Path, str], list[RawScan]]] = {
    "ixi": ixi, "brats21": brats21, "mslub": mslub, "atlas_v2": atlas_v2, "wmh": wmh, "manifest": manifest,
}  # fmt: skip


def raw_scans(root: str | Path, dataset: str, modality: str, *, splits: str | Path | None = None) -> list[RawScan]:
    """Find the raw scans of one of ``DATASETS`` in a folder, tar archive or manifest.

    Images of other modalities are included where they exist. ``splits`` is a CSV of splits that replaces the data
    set's own: see `brainuad.prepare.raw.splits.read_splits`.

    Raises:
        InputError: The folder does not exist or holds no scan of the data set; or a subject is listed twice.
    """
    root = Path(root)
    if not root.exists():
        raise InputError(root, "no such file or folder", "Give the folder (or manifest) of the raw scans")
    scans = DATASETS[dataset](root, modality)
    if not scans:
        expected = " ".join((inspect.getdoc(DATASETS[dataset]) or "").split("\n\n")[0].split())
        raise InputError(root, f"holds no {modality} scan laid out like {dataset}", f"Expected: {expected}")
    names = [scan.subject for scan in scans]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        fault = f"lists subject(s) twice: {', '.join(twice)}"
        raise InputError(root, fault, "Give each scan a subject name of its own")
    return scans if splits is None else with_splits(scans, Path(splits))
