"""Score many scans with one model. Runs can be resumed, and a scan that fails stops no other."""

from __future__ import annotations

import logging
import platform
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from brainuad._version import __version__
from brainuad.data.volume import Volume
from brainuad.detector import Detector
from brainuad.errors import InputError
from brainuad.files import key_of, read_json, sha256, write_json
from brainuad.inputs.bids import write_dataset_description
from brainuad.inputs.masks import LESION, mask_for
from brainuad.inputs.scans import Scan, output_paths
from brainuad.record import Record, from_json
from brainuad.scan.api import brain_mask_of, open_with_brain, unusable
from brainuad.scan.batch import SCAN_ERRORS, each
from brainuad.scan.identity import check_name_free, hash_of, series_hash
from brainuad.scan.pipeline import score_scan
from brainuad.scan.result import ScoreResult, write_result
from brainuad.scan.table import Row, forget_failure, record_failure, row_of, write_table
from brainuad.scoring.repertoire import SCORE

logger = logging.getLogger(__name__)
RUN_JSON = "run.json"
_SIDECAR = 3  # what one holds, and by which formulas; raise when that changes
_LIBRARIES = ("deepbet", "nibabel", "numpy", "scipy", "simpleitk", "torch")


@dataclass(frozen=True)
class Settings:
    """What a run does with every scan.

    Attributes:
        score: Entry of the score registry, or a score relative to health.
        fpr: Fraction of a healthy brain's voxels that the threshold of findings would mark.
        seed: Seeds registration and reconstruction.
        brain_mask: A mask, or the folder of all scans' masks; None to find the brains.
        lesion_mask: Ground truth, or its folder; it is only shown and compared.
    """

    score: str = SCORE
    fpr: float = 0.01
    seed: int = 0
    brain_mask: Path | None = None
    lesion_mask: Path | None = None


def score_scans(
    scans: Sequence[Scan],
    detector: Detector,
    output: Path,
    settings: Settings,
    *,
    jobs: int = 1,
    overwrite: bool = False,
    report: Callable[[Row, bool], None] = lambda row, skipped: None,
    stage: Callable[[str], None] = lambda name: None,
) -> list[Row]:
    """Score scans into a folder; those scored before with the same model, settings and files are skipped.

    Beside each scan's files (`brainuad.scan.result.write_result`; for DICOM also a segmentation, and the scan as
    NIfTI) it writes ``run.json``, a description of the data set for BIDS, a sidecar of every scan that failed, and at
    the end or when interrupted ``scores.csv`` and ``findings.csv``, in which rows of scans that are not in this run
    stay.

    Args:
        scans: What to score.
        detector: The model; scans share it.
        output: Made if missing.
        settings: See `Settings`.
        jobs: Scans at a time, in threads: the libraries that do the work let go of Python's lock.
        overwrite: Score again what is finished.
        report: Called with each scan's row of ``scores.csv`` as it is done, and whether it was skipped.
        stage: Called with scan and step ("IXI067: reconstruct") as one begins.

    Returns:
        One row a scan, in the order of ``scans``.

    Raises:
        InputError: The folder cannot be written to, or holds results of another scan under the name of one of these;
            one mask was given for several scans; the model does not know the score, or its calibration does not reach
            ``fpr``.
    """
    for mask in (settings.brain_mask, settings.lesion_mask):
        if mask is not None and mask.is_file() and len(scans) > 1:
            raise InputError(mask, f"is one mask for {len(scans)} scans", "Give a folder of masks")
    if not overwrite:
        for scan in scans:
            check_name_free(scan, output)
    detector.scores.check(settings.score)
    if detector.calibration is not None and settings.score in detector.calibration.thresholds:
        detector.calibration.threshold(settings.score, settings.fpr)  # one that it cannot give ends the run
    work = _Work(detector, detector.result_key, output, settings, overwrite, stage)
    started, clock = datetime.now(UTC), time.perf_counter()
    run: dict[str, Any] = {
        "version": __version__,
        "model": {"name": detector.name, "fingerprint": detector.fingerprint, "modality": detector.modality},
        "settings": _plain(settings) | {"device": str(detector.device), "precision": detector.precision, "jobs": jobs},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in _LIBRARIES},
        "started": started.isoformat(timespec="seconds"),
        "inputs": [{"name": scan.name, "source": str(scan.source), "kind": scan.kind} for scan in scans],
        "healthy_scores": _healthy_scores(detector, settings.score),
    }
    if bids := [scan for scan in scans if scan.kind == "bids"]:
        root = bids[0].source.parents[len(Path(bids[0].folder).parts)]
        write_dataset_description(output, root, detector.modality)
    write_json(output / RUN_JSON, run)  # a folder that cannot be written to is found out before the work
    rows: dict[Scan, Row] = {}
    counts: Counter[str] = Counter()
    try:
        for scan, row, skipped in each(work, scans, jobs):
            rows[scan] = row
            counts["skipped" if skipped else row["status"]] += 1
            report(row, skipped)
    finally:  # an interrupted run leaves its tables too
        ordered = [rows[scan] for scan in scans if scan in rows]
        run["seconds"] = round(time.perf_counter() - clock, 1)
        run["counts"] = {status: counts[status] for status in ("done", "skipped", "failed")}
        write_table(output, ordered)
        write_json(output / RUN_JSON, run)
    return ordered


@dataclass(frozen=True)
class _Work:
    """Scores one scan after the other."""

    detector: Detector
    detector_key: str
    output: Path
    settings: Settings
    overwrite: bool
    stage: Callable[[str], None]

    def __call__(self, scan: Scan) -> tuple[Scan, Row, bool]:
        """Score a scan, or find it done: the scan, its row, and whether it was skipped."""
        started = time.perf_counter()
        try:
            record, skipped = self.record(scan)
            forget_failure(scan, self.output)
            return scan, row_of(record), skipped
        except SCAN_ERRORS as error:
            if not isinstance(error, InputError):
                error = unusable(scan.source, error)
            seconds = round(time.perf_counter() - started, 1)
            return scan, record_failure(scan, self.output, str(error), seconds), False

    def record(self, scan: Scan) -> tuple[Record, bool]:
        """Return what a scan's sidecar holds, and whether it did before."""
        if scan.fault:
            raise scan.fault
        clock = time.perf_counter()
        settings, paths = self.settings, output_paths(scan)
        sidecar = self.output / paths["sidecar"]
        brain_path, lesion_path = brain_mask_of(scan, settings.brain_mask), None
        if settings.lesion_mask is not None:
            lesion_path = mask_for(scan.source, settings.lesion_mask, LESION)
            if lesion_path is None:
                missing = "%s: holds no lesion mask for %s, which is shown without"
                logger.warning(missing, settings.lesion_mask, scan.source.name)
        hashes = [hash_of(scan), *(sha256(path) if path else "" for path in (brain_path, lesion_path))]
        recipe = self.recipe(hashes)
        if not self.overwrite and (known := _finished(sidecar, recipe)) is not None:
            return known, True
        volume, brain = open_with_brain(scan, brain_path)
        lesion = Volume.load(lesion_path) if lesion_path else None
        if lesion and lesion_path and (fault := lesion.outline_fault()):
            raise InputError(lesion_path, fault, "Give the outline of the lesions")
        read = round(time.perf_counter() - clock, 3)
        result = score_scan(
            volume,
            self.detector,
            brain_mask=brain,
            score=settings.score,
            fpr=settings.fpr,
            seed=settings.seed,
            stage=lambda name: self.begin(scan, name),
        )
        if lesion and lesion_path and not (result.placed.placement.sample_outline(lesion) & result.placed.mask).any():
            result.warnings.append(f"{lesion_path.name}, the lesion mask, marks nothing in the brain")
        self.stage(f"{scan.name}: writing")
        result.seconds["read"] = read
        scan_source = replace(
            result.record.scan, source=str(scan.source), kind=scan.kind, sha256=hashes[0], series=series_hash(scan)
        )
        record = replace(
            result.record,
            name=scan.name,
            scan=scan_source,
            brain_mask=str(brain_path.absolute()) if brain_path else None,
            lesion_mask=str(lesion_path.absolute()) if lesion_path else None,
            recipe=recipe,
        )
        result = replace(result, record=record)
        outputs = {kind: Path(path).name for kind, path in paths.items() if kind not in ("sidecar", "segmentation")}
        if scan.kind != "dicom":
            return write_result(result, sidecar, outputs, lesion), False
        outputs["scan"] = f"{scan.name}_scan.nii.gz"

        def segment() -> dict[str, str]:
            return self.segment(scan, result, self.output / paths["segmentation"])

        return write_result(result, sidecar, outputs, lesion, segment), False

    def begin(self, scan: Scan, step: str) -> None:
        """Say which step of a scan begins."""
        self.stage(f"{scan.name}: {step}")
        if step == "registering":  # takes one core
            for module in ("brainuad.report.montage", "brainuad.report.page"):  # slow to import
                threading.Thread(target=import_module, args=(module,)).start()

    def segment(self, scan: Scan, result: ScoreResult, path: Path) -> dict[str, str]:
        """Write findings as a DICOM segmentation and return its name; what keeps it from that becomes a warning."""
        path.unlink(missing_ok=True)
        if not result.findings:
            return {}
        from brainuad.inputs.dicom.segmentation import write_segmentation  # slow to import

        scale, labels = result.record.calibration, result.volumes["lesions"]
        healthy = scale.scans if scale else 0
        try:
            if write_segmentation(labels, result.findings, healthy, scan.source, scan.series, path):
                return {"segmentation": path.name}
        except SCAN_ERRORS as error:
            result.warnings.append(f"no DICOM segmentation: {' '.join(str(error).split())}")
        return {}

    def recipe(self, hashes: list[str]) -> str:
        """Return a key that changes with whatever could change the scan's results."""
        settings = self.settings
        asked = [settings.score, settings.fpr, settings.seed]
        calibration = self.detector.calibration and self.detector.calibration.to_dict()
        return key_of(__version__, _SIDECAR, self.detector_key, calibration, asked, hashes)


def _healthy_scores(detector: Detector, score: str) -> list[float]:
    known = detector.calibration and detector.calibration.scan_scores
    return list((known or {}).get(score, ()))


def _plain(settings: Settings) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(settings).items()}


def _finished(sidecar: Path, recipe: str) -> Record | None:
    """Return what a scan's sidecar holds if the scan was scored by this recipe and its files are there."""
    try:
        known = from_json(read_json(sidecar))
    except (OSError, ValueError):  # absent, or as good as absent
        return None
    if not isinstance(known, Record) or known.recipe != recipe:
        return None
    complete = all((sidecar.parent / name).is_file() for name in known.outputs.values())
    return known if complete else None
