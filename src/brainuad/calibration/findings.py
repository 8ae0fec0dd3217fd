"""The findings of healthy scans, and the number of scans with a finding like a given one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from brainuad.calibration._values import number, numbers, sequence
from brainuad.components import outlined

SMALLEST_FINDING = 8  # voxels of the model's grid, as in the published protocol
RARE = 0.05  # a finding is rare if a smaller fraction of healthy scans has one like it


@dataclass(frozen=True)
class HealthyFindings:
    """The findings of healthy scans at one threshold, measured on the model's grid.

    A scan has a finding like a given one if one of its findings is at least as high *and* at least as large. So only
    those findings of a scan are kept that no other finding of the scan exceeds in both.

    Attributes:
        counts: Number of findings of each scan.
        voxels: Total voxels of each scan's findings.
        greatest: By scan, peak and voxels of the kept findings, highest peak first.
    """

    counts: tuple[int, ...]
    voxels: tuple[int, ...]
    greatest: tuple[tuple[tuple[float, int], ...], ...]

    @classmethod
    def of(cls, scans: Iterable[Sequence[tuple[float, int]]]) -> HealthyFindings:
        """Select them from peak and voxels of all findings of each scan."""
        findings = [list(scan) for scan in scans]
        return cls(
            tuple(len(scan) for scan in findings),
            tuple(sum(voxels for _, voxels in scan) for scan in findings),
            tuple(_greatest(scan) for scan in findings),
        )

    def alike(self, peak: float, voxels: float) -> int:
        """Return the number of scans with a finding at least as high and as large.

        Args:
            peak: Its highest map value.
            voxels: Its volume, in voxels of the model's grid.
        """
        return sum(any(high >= peak and size >= voxels for high, size in scan) for scan in self.greatest)

    def is_rare(self, alike: int) -> bool:
        """Return whether fewer than 1 in 20 healthy scans have a finding like it."""
        return alike < RARE * len(self.counts)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "counts": list(self.counts),
            "voxels": list(self.voxels),
            "greatest": [[list(finding) for finding in scan] for scan in self.greatest],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> HealthyFindings:
        """Read the values of `to_dict`.

        Raises:
            ValueError: An entry is missing or cannot be used.
        """
        counts, voxels = (tuple(map(int, numbers(values, name))) for name in ("counts", "voxels"))
        greatest = tuple(
            tuple(map(_pair, sequence({"greatest": scan}, "greatest"))) for scan in sequence(values, "greatest")
        )
        if not len(counts) == len(voxels) == len(greatest) > 0:
            raise ValueError("has findings of another number of scans than it says")
        return cls(counts, voxels, greatest)


def measure_findings(anomaly: np.ndarray, threshold: float) -> list[tuple[float, int]]:
    """Return peak and voxels of the findings above a threshold, of ``SMALLEST_FINDING`` voxels or more.

    Args:
        anomaly: ``(X, Y, Z)`` map on the model's grid.
        threshold: Voxels with a greater value may belong to a region.
    """
    labels, count = outlined(anomaly, threshold)
    if not count:
        return []
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    peaks = ndimage.maximum(anomaly, labels, np.arange(1, count + 1))
    return [
        (round(float(peak), 4), int(size)) for peak, size in zip(peaks, sizes, strict=True) if size >= SMALLEST_FINDING
    ]


def _greatest(findings: Iterable[tuple[float, int]]) -> tuple[tuple[float, int], ...]:
    kept: list[tuple[float, int]] = []
    for peak, voxels in sorted(findings, reverse=True):
        if not kept or voxels > kept[-1][1]:
            kept.append((peak, voxels))
    return tuple(kept)


def _pair(values: Any) -> tuple[float, int]:
    if not isinstance(values, list) or len(values) != 2:
        raise ValueError(f"has {str(values)[:40]!r} for a finding's peak and voxels")
    return number({"peak": values[0]}, "peak"), int(number({"voxels": values[1]}, "voxels"))
