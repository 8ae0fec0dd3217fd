"""One scan scored: maps, what healthy scans say about them, findings."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict

import numpy as np

from brainuad.calibration import SMALLEST_FINDING
from brainuad.data.volume import Volume
from brainuad.detector import Detector
from brainuad.evaluation import scan_score
from brainuad.scan.findings import MOST_FINDINGS, Finding, find_findings, rarest_first
from brainuad.scan.healthy import against_healthy
from brainuad.scan.pipeline import map_scan
from brainuad.scan.result import ScoreResult


def score_scan(
    scan: Volume,
    detector: Detector,
    *,
    brain_mask: Volume | None = None,
    score: str | None = None,
    fpr: float = 0.01,
    seed: int = 0,
    stage: Callable[[str], None] = lambda name: None,
) -> ScoreResult:
    """Score one scan in its own space.

    Args:
        scan: With or without skull.
        detector: The model.
        brain_mask: Above 0.5 in the brain, on the scan's grid; without it the brain is looked for.
        score: As :meth:`Detector.maps` takes it; by default the model's default.
        fpr: Fraction of a healthy brain's voxels that the threshold of findings would mark.
        seed: Seeds registration and reconstruction.
        stage: Called with the name of each step as it begins.

    Raises:
        ValueError: The scan or its mask cannot be used.
        InputError: The model's calibration has no threshold for ``fpr``, or the model does not know the score.
    """
    score = detector.score_called(score)
    maps = map_scan(scan, detector, brain_mask=brain_mask, scores=(score,), seed=seed, stage=stage)
    stage("findings")
    clock = time.perf_counter()
    placed, anomaly = maps.placed, maps.maps[score]
    volumes = {
        "anomaly": maps.to_native(anomaly),
        "brain": scan.with_array(maps.brain.mask),
    }
    if maps.reconstruction is not None:
        volumes["reconstruction"] = maps.to_native(maps.reconstruction)
    value = scan_score(anomaly, placed.mask)
    known, percentile, doubts = against_healthy(detector, maps, score, fpr, value)
    threshold = known["threshold"] if known else None
    labels: np.ndarray = np.zeros(scan.array.shape, dtype=np.uint8)
    findings: list[Finding] = []
    if threshold is not None:
        # On the scan's grid, so that what the files hold is what the list says.
        labels, findings, more = find_findings(
            volumes["anomaly"].array,
            threshold,
            scan.affine,
            np.linalg.inv(placed.atlas_to_scan),
            smallest_ml=SMALLEST_FINDING * placed.voxel_ml,
        )
        if detector.calibration and (healthy := detector.calibration.healthy_findings(score, fpr)):
            labels, findings = rarest_first(labels, findings, healthy[1], placed.voxel_ml)
        if more:
            doubts.append(f"{more} more findings than the {MOST_FINDINGS} largest are not listed")
    volumes["lesions"] = scan.with_array(labels)
    seconds = maps.seconds | {"findings": round(time.perf_counter() - clock, 3)}
    warnings = [*maps.brain.warnings, *doubts]
    header = scan.header
    record = {
        "scan": {
            "source": "", "kind": "nifti", "sha256": "", "series": "",
            "shape": [int(size) for size in header.get_data_shape()[:3]],
            "spacing_mm": [round(float(size), 4) for size in header.get_zooms()[:3]],
            "orientation": scan.file_orientation,
        },
        "model": {
            "name": detector.name, "fingerprint": detector.fingerprint, "modality": detector.modality
        },
        "settings": {
            "score": score, "fpr": fpr, "seed": seed,
            "device": str(detector.device), "precision": detector.precision,
        },
        "calibration": known,
        "brain": {"source": maps.brain.source, "ml": round(maps.brain.ml, 2)},
        "alignment": round(placed.alignment, 4),
        "score": {"value": value, "percentile": percentile},
        "warnings": warnings,
        "findings": [asdict(finding) for finding in findings],
    }  # fmt: skip
    return ScoreResult(maps, volumes, value, percentile, threshold, findings, warnings, seconds, record)
