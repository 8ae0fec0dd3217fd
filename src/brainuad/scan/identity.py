"""Keep one scan's results from overwriting another's of the same name."""

from __future__ import annotations

import os
from hashlib import sha256 as _sha256
from pathlib import Path

from brainuad.errors import InputError
from brainuad.files import read_json, sha256
from brainuad.inputs.scans import Scan, output_paths
from brainuad.record import ScanSource


def check_name_free(scan: Scan, output: Path) -> None:
    """Refuse to replace the results of another scan, which has another path and other contents.

    Raises:
        InputError: The folder has results of another scan under this one's name.
    """
    sidecar = output / output_paths(scan)["sidecar"]
    recorded = _recorded_scan(sidecar)
    if recorded is None or _is_of(scan, recorded):
        return
    if not scan.fault and os.access(scan.source, os.R_OK):
        try:
            if hash_of(scan) == recorded.sha256:
                return  # moved
        except (InputError, OSError):
            return  # an unreadable scan fails later, when it is scored, and replaces nothing
    fault = f"has the name {scan.name}, but {sidecar} holds results of {recorded.source}"
    raise InputError(scan.source, fault, "Choose another output folder, or --overwrite")


def may_replace(scan: Scan, sidecar: Path) -> bool:
    """Return whether a sidecar is absent, damaged, or of this scan."""
    recorded = _recorded_scan(sidecar)
    return recorded is None or _is_of(scan, recorded)


def series_hash(scan: Scan) -> str:
    """Return a hash of a DICOM series' UID, because the UID may identify a patient; "" for other scans."""
    return _sha256(scan.series.encode()).hexdigest()[:16] if scan.series else ""


def hash_of(scan: Scan) -> str:
    """Return a hash of a scan's file, or of the files of its DICOM series, regardless of their order."""
    if scan.kind != "dicom":
        return sha256(scan.source)
    from brainuad.inputs.dicom.volume import find_series

    parts = find_series(scan.source, scan.series).slices
    return _sha256("".join(sorted(sha256(part.path) for part in parts)).encode()).hexdigest()


def _is_of(scan: Scan, recorded: ScanSource) -> bool:
    return (recorded.source, recorded.series) == (str(scan.source), series_hash(scan))


def _recorded_scan(sidecar: Path) -> ScanSource | None:
    """Return the scan that a sidecar is of, whatever version wrote the rest; None where it is absent or damaged."""
    try:
        scan = read_json(sidecar)["scan"]
        return ScanSource(scan["source"], "", scan["series"], scan.get("sha256", ""))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
