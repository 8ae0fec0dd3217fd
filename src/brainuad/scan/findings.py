"""Findings: the connected regions of an anomaly map above a threshold, measured on the scan's grid."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import ndimage

from brainuad.calibration import HealthyFindings
from brainuad.components import outlined
from brainuad.data.placement import ATLAS_CENTRE
from brainuad.data.regions import mni_of, region_at
from brainuad.record import Finding, Point

MOST_FINDINGS = 255  # labels of an 8-bit image
_MIDLINE = 4.0  # mm to either side of the atlas's midline


def find_findings(
    anomaly: np.ndarray, threshold: float, affine: np.ndarray, scan_to_atlas: np.ndarray, *, smallest_ml: float = 0.0
) -> tuple[np.ndarray, list[Finding], int]:
    """List the regions that stand out above a threshold (`brainuad.components.outlined`), largest first.

    Args:
        anomaly: ``(X, Y, Z)`` map on the scan's grid.
        threshold: Voxels with a greater value may belong to a region.
        affine: ``(4, 4)``, voxel indices to scanner mm.
        scan_to_atlas: ``(4, 4)``, scanner mm to atlas mm.
        smallest_ml: Regions of smaller volume are left out.

    Returns:
        ``(X, Y, Z)`` uint8 labels, 0 elsewhere; the findings; and the number of regions beyond the 255 that labels
        allow.
    """
    voxel_ml = float(abs(np.linalg.det(affine[:3, :3])) / 1000)
    components, _ = outlined(anomaly, threshold)
    inside = components > 0
    sizes = np.bincount(components[inside], minlength=1)
    big = np.flatnonzero(sizes * voxel_ml >= max(smallest_ml, voxel_ml / 2))
    order = big[np.argsort(-sizes[big], kind="stable")]
    kept = order[:MOST_FINDINGS]
    new_labels = np.zeros(len(sizes), dtype=np.uint8)
    new_labels[kept] = np.arange(1, len(kept) + 1)
    labels = np.zeros(components.shape, dtype=np.uint8)
    labels[inside] = new_labels[components[inside]]
    findings = [
        _measure(label, labels, anomaly, box, affine, scan_to_atlas)
        for label, box in enumerate(ndimage.find_objects(labels), 1)
    ]
    return labels, findings, len(order) - len(kept)


def rarest_first(
    labels: np.ndarray, findings: list[Finding], healthy: HealthyFindings, grid_voxel_ml: float
) -> tuple[np.ndarray, list[Finding]]:
    """Count the healthy scans with a similar finding for each finding, and sort by that count, rarest first.

    Args:
        labels: ``(X, Y, Z)`` uint8, as `find_findings` gives them.
        findings: The findings, largest first.
        healthy: The findings of healthy scans at the same threshold.
        grid_voxel_ml: Volume of a voxel of the model's grid in the scan's space, in mL.

    Returns:
        New labels and findings, rarest first; equally rare ones by volume, largest first.
    """
    alike = [healthy.alike(finding.peak, finding.ml / grid_voxel_ml) for finding in findings]
    order = sorted(range(len(findings)), key=alike.__getitem__)
    new_labels = np.zeros(MOST_FINDINGS + 1, dtype=np.uint8)
    for label, index in enumerate(order, 1):
        new_labels[findings[index].label] = label
    return new_labels[labels], [
        replace(findings[index], label=label, healthy_alike=alike[index], rare=healthy.is_rare(alike[index]))
        for label, index in enumerate(order, 1)
    ]


def _measure(
    label: int,
    labels: np.ndarray,
    anomaly: np.ndarray,
    box: tuple[slice, ...],
    affine: np.ndarray,
    scan_to_atlas: np.ndarray,
) -> Finding:
    inside = labels[box] == label
    values = anomaly[box][inside]
    places = np.argwhere(inside) + [part.start for part in box]
    in_mm = places @ affine[:3, :3].T + affine[:3, 3]
    # the centre of mass of a concave region may lie outside it
    centre = in_mm[((in_mm - in_mm.mean(0)) ** 2).sum(1).argmin()]
    in_atlas = (scan_to_atlas @ [*centre, 1])[:3]
    all_in_atlas = in_mm @ scan_to_atlas[:3, :3].T + scan_to_atlas[:3, 3]
    off_middle = in_atlas[0] - ATLAS_CENTRE[0]
    side = "midline" if abs(off_middle) <= _MIDLINE else "right" if off_middle > 0 else "left"
    voxel_ml = float(abs(np.linalg.det(affine[:3, :3])) / 1000)
    return Finding(
        label=label,
        voxels=len(values),
        ml=round(len(values) * voxel_ml, 4),
        peak=round(float(values.max()), 5),
        mean=round(float(values.mean()), 5),
        centre_mm=_point(centre),
        atlas_mm=_point(in_atlas),
        mni_mm=_point(mni_of(in_atlas)),
        side=side,
        region=region_at(all_in_atlas),
    )


def _point(values: np.ndarray) -> Point:
    x, y, z = (round(float(value), 2) for value in values)
    return x, y, z
