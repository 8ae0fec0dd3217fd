"""Keep one scan's results from overwriting another's of the same name."""

from __future__ import annotations

import json
import os
from hashlib import sha256 as _sha256
from pathlib import Path
from typing import Any

from brainuad.errors import InputError
from brainuad.files import sha256
from brainuad.inputs.scans import Scan, output_paths


def check_name_free(scan: Scan, output: Path) -> None:
    """Refuse to replace the results of another scan: one of another place and other contents.

    Raises:
        InputError: The folder has results of another scan under this one's name.
    """
    sidecar = output / output_paths(scan)["sidecar"]
    told = _told_of(sidecar)
    if told is None or _is_of(scan, told):
        return
    if not scan.fault and os.access(scan.source, os.R_OK):
        try:
            if hash_of(scan) == told.get("sha256"):
                return  # moved
        except (InputError, OSError):
            return  # what cannot be read is told when its turn comes, and replaces nothing
    fault = f"has the name {scan.name}, under which {sidecar} tells of {told['source']}"
    raise InputError(scan.source, fault, "Choose another output folder, or --overwrite")


def may_replace(scan: Scan, sidecar: Path) -> bool:
    """Whether a sidecar is absent, as good as absent, or of this scan."""
    told = _told_of(sidecar)
    return told is None or _is_of(scan, told)


def series_hash(scan: Scan) -> str:
    """Return a hash of a DICOM series' UID, which itself may tell of a patient; "" for other scans."""
    return _sha256(scan.series.encode()).hexdigest()[:16] if scan.series else ""


def hash_of(scan: Scan) -> str:
    """Return a hash of a scan's file, or of the files of its DICOM series in whatever order."""
    if scan.kind != "dicom":
        return sha256(scan.source)
    from brainuad.inputs.dicom.volume import find_series

    parts = find_series(scan.source, scan.series).slices
    return _sha256("".join(sorted(sha256(part.path) for part in parts)).encode()).hexdigest()


def _is_of(scan: Scan, told: dict[str, Any]) -> bool:
    return (told["source"], told["series"]) == (str(scan.source), series_hash(scan))


def _told_of(sidecar: Path) -> dict[str, Any] | None:
    """Return what a sidecar tells of its scan; None where it is absent, or as good as absent."""
    try:
        told: dict[str, Any] = json.loads(sidecar.read_text(encoding="utf-8"))["scan"]
        return told if {"source", "series"} <= told.keys() else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
