"""Score one scan: its maps, their resampling to the scan's grid, findings, and comparison with healthy scans."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from brainuad.calibration import (
    FEW_SCANS,
    SMALLEST_FINDING,
    Calibration,
    HealthyAppearance,
    HealthyFindings,
    appearance_of,
)
from brainuad.data.atlas import PlacedScan, place_scan
from brainuad.data.volume import Volume
from brainuad.detector import Detector, Maps
from brainuad.devices import device_told_from_scan
from brainuad.evaluation import scan_score
from brainuad.record import (
    FEW_HEALTHY,
    FIRST_COLOUR,
    FULL_COLOUR,
    BrainFound,
    Finding,
    HealthyRange,
    ModelUsed,
    Record,
    Scale,
    ScanScore,
    ScanSource,
    ScoredWith,
    Spread,
)
from brainuad.scan.findings import MOST_FINDINGS, find_findings, rarest_first
from brainuad.scan.result import ScoreResult

_NEXT = {"brain": "registering", "place": "reconstruct", "reconstruct": "score"}  # what follows a step


def map_scan(
    scan: Volume,
    detector: Detector,
    *,
    brain_mask: Volume | None = None,
    scores: Iterable[str] | None = None,
    seed: int = 0,
    stage: Callable[[str], None] = lambda name: None,
) -> tuple[PlacedScan, Maps, dict[str, float]]:
    """Compute a scan's maps on the model's grid; scoring and calibration both begin here.

    Args:
        scan: The scan, with or without skull.
        detector: The model.
        brain_mask: Above 0.5 in the brain, on the scan's grid.
        scores: As `Detector.maps` takes them; by default the model's default.
        seed: Seeds registration and reconstruction.
        stage: Called with the name of each step as it begins: "brain", "registering", "reconstruct", "score".

    Returns:
        The scan on the model's grid, its maps there, and seconds by step.

    Raises:
        ValueError: The scan or its mask cannot be used.
        InputError: The model cannot give a score.
        DeviceError: The device does not work any more.
    """
    seconds: dict[str, float] = {}
    clock = time.perf_counter()

    def lap(step: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        seconds[step], clock = round(now - clock, 3), now
        if step in _NEXT:
            stage(_NEXT[step])

    stage("brain")
    placed = place_scan(scan, detector.data_config, brain_mask=brain_mask, seed=seed, lap=lap)
    with device_told_from_scan(detector.device):
        maps = detector.maps(placed.image, placed.mask, scores or [detector.scores.default], seed, lap=lap)
    lap("score")
    return placed, maps, seconds


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
        brain_mask: Above 0.5 in the brain, on the scan's grid. None extracts the brain.
        score: As `Detector.maps` takes it; by default the model's default.
        fpr: Fraction of a healthy brain's voxels above the threshold of findings.
        seed: Seeds registration and reconstruction.
        stage: Called with the name of each step as it begins.

    Raises:
        ValueError: The scan or its mask cannot be used.
        InputError: The model's calibration has no threshold for ``fpr``, or the model cannot give the score.
    """
    score = detector.scores.called(score)
    placed, maps, seconds = map_scan(scan, detector, brain_mask=brain_mask, scores=(score,), seed=seed, stage=stage)
    stage("findings")
    clock = time.perf_counter()
    anomaly = maps.final[score]
    back = {"anomaly": anomaly, "reconstruction": maps.reconstruction}
    with ThreadPoolExecutor() as pool:
        native = {name: pool.submit(placed.back, array) for name, array in back.items() if array is not None}
    volumes = {"brain": scan.with_array(placed.brain.mask)} | {name: job.result() for name, job in native.items()}
    value = scan_score(anomaly, placed.mask)
    scale, warnings = _against_healthy(detector, placed, score, fpr)
    labels: np.ndarray = np.zeros(scan.array.shape, dtype=np.uint8)
    findings: list[Finding] = []
    percentile = None
    if scale is not None and detector.calibration is not None:
        percentile = detector.calibration.percentile(score, value)
        healthy = detector.calibration.healthy_findings(score, fpr)
        labels, findings, more = _findings(volumes["anomaly"], placed, scale.threshold, healthy and healthy[1])
        warnings += more
    volumes["lesions"] = scan.with_array(labels)
    header = scan.header
    record = Record(
        scan=ScanSource(
            source="",
            kind="nifti",
            shape=tuple(int(size) for size in header.get_data_shape()[:3]),
            spacing_mm=tuple(round(float(size), 4) for size in header.get_zooms()[:3]),
            orientation=scan.file_orientation,
        ),
        model=ModelUsed(detector.name, detector.fingerprint, detector.modality),
        settings=ScoredWith(score, fpr, seed, str(detector.device), detector.precision),
        calibration=scale,
        brain=BrainFound(placed.brain.source, round(placed.brain.ml, 2)),
        alignment=round(placed.alignment, 4),
        score=ScanScore(value, percentile),
        warnings=[*placed.brain.warnings, *warnings],
        findings=findings,
        seconds=seconds | {"findings": round(time.perf_counter() - clock, 3)},
    )
    return ScoreResult(placed, maps, volumes, record)


def _findings(
    anomaly: Volume, placed: PlacedScan, threshold: float, healthy: HealthyFindings | None
) -> tuple[np.ndarray, list[Finding], list[str]]:
    """Return labels and findings on the scan's grid, so that the files hold what the list says; and warnings."""
    labels, findings, more = find_findings(
        anomaly.array,
        threshold,
        anomaly.affine,
        np.linalg.inv(placed.placement.atlas_to_scan),
        smallest_ml=SMALLEST_FINDING * placed.placement.voxel_ml,
    )
    if healthy:
        labels, findings = rarest_first(labels, findings, healthy, placed.placement.voxel_ml)
    warnings = [f"{more} more findings than the {MOST_FINDINGS} largest are not listed"] if more else []
    return labels, findings, warnings


def _against_healthy(detector: Detector, placed: PlacedScan, score: str, fpr: float) -> tuple[Scale | None, list[str]]:
    """Return what the healthy scans of the calibration say about map values, or None, and warnings."""
    calibration = detector.calibration
    healthy = HealthyAppearance() if calibration is None else calibration.appearance
    # Correlation with the atlas, which is a T1, says nothing of another contrast, unless healthy scans of that do.
    alignment = placed.alignment if detector.modality == "t1" or healthy.knows_alignment else None
    ml = placed.brain.ml if placed.brain.is_usual else None  # one warning of the volume is enough
    warnings = healthy.warnings(appearance_of(placed.image, placed.mask, ml, alignment))
    if calibration is None:
        return None, [*warnings, "the model has no calibration: there is no threshold, so no findings"]
    if calibration.scans < FEW_SCANS:
        few = f"{FEW_HEALTHY} {calibration.scans} healthy scans; {FEW_SCANS} or more are better"
        warnings = [few, *warnings]
    if score not in calibration.thresholds:
        return None, [*warnings, f"{score} was not calibrated: there is no threshold, so no findings"]
    scale = Scale(
        scans=calibration.scans,
        fraction=fpr,
        threshold=calibration.threshold(score, fpr),
        interval=calibration.interval(score, fpr),
        first_colour=calibration.threshold(score, FIRST_COLOUR),
        full_colour=calibration.threshold(score, FULL_COLOUR),
        healthy_findings=_healthy_findings(calibration, score, fpr, placed.placement.voxel_ml),
    )
    return scale, warnings


def _healthy_findings(calibration: Calibration, score: str, fpr: float, voxel_ml: float) -> HealthyRange | None:
    """Return how many findings healthy scans have, and how large they would be in this head."""
    known = calibration.healthy_findings(score, fpr)
    if known is None:
        return None
    fraction, healthy = known
    ml = [round(voxels * voxel_ml, 3) for voxels in healthy.voxels]
    return HealthyRange(fraction, Spread.of(healthy.counts), Spread.of(ml))
