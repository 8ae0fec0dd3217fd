"""Calibrate a model on healthy scans: score each as a user's scan is scored, and summarise it."""

from __future__ import annotations

import logging
import shutil
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from brainuad._version import __version__
from brainuad.calibration import (
    Appearance,
    Calibration,
    HealthyAppearance,
    HealthyScan,
    calibration_of,
    set_against_health,
)
from brainuad.calibration.appearance import ENOUGH
from brainuad.data.bias import warn_of_other_bias_levels
from brainuad.data.cohort import Case, find_layout, read_cases
from brainuad.data.leaks import leak_free
from brainuad.data.loading import content_key, load_case
from brainuad.detector import Detector, load_model
from brainuad.devices import device_told_from_scan
from brainuad.errors import InputError
from brainuad.files import atomic_path, check_writable, key_of, sha256, write_json
from brainuad.inputs.scans import Scan, find_scans
from brainuad.modelfile import CALIBRATION, CONFIG, HEALTH, WEIGHTS, known_models, model_folder
from brainuad.scan import map_scan
from brainuad.scan.api import brain_mask_of, open_with_brain, unusable
from brainuad.scan.batch import SCAN_ERRORS, each
from brainuad.scan.identity import hash_of
from brainuad.scoring.health import HealthyMoments
from brainuad.scoring.names import bases_of
from brainuad.scoring.rarity import RARITY

logger = logging.getLogger(__name__)
SUMMARIES = "calibration_scans"  # folder of finished summaries, beside the model
_COMPARED = 30  # scans that each is compared with: time grows with their square
_LAYOUT = 6  # version of the summaries; raise it when their contents change
Row = dict[str, Any]
Report = Callable[[Row, int], None]


@dataclass(frozen=True)
class Calibrated:
    """Result of a calibration.

    Attributes:
        calibration: The thresholds and other figures.
        folder: The model folder that holds them.
        rows: One row a scan, in order: name, status ("done", "skipped" or "failed"), seconds, message.
        score: The calibrated model's default score.
    """

    calibration: Calibration
    folder: Path
    rows: list[Row]
    score: str


def calibrate(
    model: str | Path,
    healthy: Sequence[str | Path],
    output: str | Path | None = None,
    *,
    brain_mask: str | Path | None = None,
    jobs: int = 1,
    device: str = "auto",
    precision: str = "auto",
    seed: int = 0,
    report: Report = lambda row, total: None,
    stage: Callable[[str], None] = lambda name: None,
) -> Calibrated:
    """Calibrate a model on healthy scans.

    Finished scans are kept beside the model: a rerun with the same model and settings skips them, and measures only
    new ones. Scores relative to health need scans of three subjects.

    Args:
        model: Name of a shipped model, or folder of a model or a run.
        healthy: Scans, as `brainuad.inputs.scans.find_scans` takes them; or one manifest or folder in the paper's
            layout, whose healthy validation scans are used as prepared.
        output: Folder for a calibrated copy of the model. By default the model's own folder is changed.
        brain_mask: Folder of the scans' brain masks. None extracts the brains.
        jobs: Number of scans scored at the same time.
        device: "auto", "cpu", "cuda" or "mps".
        precision: As in `brainuad.detector.load_model`.
        seed: Seeds registration, reconstruction and the bootstrap.
        report: Called with each scan's row as it is done, and the number of scans.
        stage: Called with scan and step ("IXI067: reconstruct") as one begins.

    Raises:
        InputError: The model or scans cannot be found, fewer than two scans can be used, or the folder cannot be
            written to or holds another model.
    """
    with model_folder(model) as source:
        if output is None and str(model) in known_models():
            raise InputError(model, "comes with brainuad and is not changed", "Add -o DIR")
        folder = source if output is None else Path(output)
        detector = load_model(source, device, precision)
        masks = None if brain_mask is None else Path(brain_mask)
        if masks is not None and not masks.is_dir():
            raise InputError(masks, "is no folder", "Give a folder of masks named after their scans")
        scans = _healthy_scans(healthy, detector, folder)
        _check_other_model(folder, detector)
    _check_enough(len(scans), len(scans), healthy)
    _check_once(scans)
    check_writable(folder)
    # A score of many draws takes as many times as long, and its scale differs from scan to scan.
    names = dict.fromkeys([*detector.scores.plain, *bases_of(RARITY, detector.scores.ensemble.parts)])
    scores = tuple(name for name in names if detector.scores.makes(name) and detector.scores.draws([name]) == 1)
    work = _Work(detector, detector.result_key, scores, folder / SUMMARIES, masks, seed, stage)
    summaries: dict[int, HealthyScan] = {}
    rows: dict[int, Row] = {}
    numbered: list[tuple[int, Scan | Case]] = list(enumerate(scans))
    for index, row, summary in each(work, numbered, jobs):
        rows[index] = row
        if summary is not None:
            summaries[index] = summary
        report(row, len(scans))
    ordered = [rows[index] for index in range(len(scans))]
    left_out = [row["name"] for row in ordered if row["status"] == "failed"]
    _check_enough(len(summaries), len(scans), healthy)
    usable = sorted(summaries)
    _warn_of_odd({rows[index]["name"]: summaries[index].appearance for index in usable}, detector)
    subjects = [_subject(scans[index]) for index in usable]
    health, used = set_against_health([summaries[index] for index in usable], subjects, detector.scores.ensemble)
    calibration = calibration_of(
        used,
        subjects,
        seed=seed,
        made_from="prepared scans" if isinstance(scans[0], Case) else "raw scans",
        left_out=left_out,
    )
    _write(model, folder, health, calibration)
    return Calibrated(calibration, folder, ordered, replace(detector, health=health).scores.default)


def _healthy_scans(healthy: Sequence[str | Path], detector: Detector, output: Path) -> list[Scan] | list[Case]:
    """Return the healthy scans: those of a cohort's validation split, or all given scans."""
    if len(healthy) != 1 or not _is_cohort(Path(healthy[0])):
        return find_scans(healthy, modality=detector.modality, output=output)
    fold = detector.provenance.get("fold") or 0
    cases = leak_free(read_cases(healthy[0], detector.modality, fold, training=False))
    chosen = [case for case in cases if case.split == "val" and case.healthy]
    if not chosen:
        raise InputError(healthy[0], "lists no healthy scan for validation", "Set split to val and label to 0")
    warn_of_other_bias_levels(chosen, detector.data_config.bias_levels)
    return chosen


def _is_cohort(path: Path) -> bool:
    if path.suffix.lower() == ".csv":
        return True
    try:
        return find_layout(path).is_dir()
    except InputError:
        return False


def _check_enough(usable: int, given: int, healthy: Sequence[str | Path]) -> None:
    if usable < 2:
        fault = f"only {usable} of {given} healthy scan(s) could be used" if given > 1 else "is one healthy scan"
        raise InputError(healthy[0], fault, "Give at least two, better twenty or more")


def _check_once(scans: Sequence[Scan | Case]) -> None:
    """Refuse two scans with the same contents, which would count as two healthy people."""
    known: dict[str, Path] = {}
    for scan in scans:
        path = scan.image if isinstance(scan, Case) else scan.source
        try:
            contents = sha256(path) if isinstance(scan, Case) else hash_of(scan)
        except SCAN_ERRORS:
            continue  # what is wrong with a scan is said when its turn comes
        if contents in known:
            raise InputError(path, f"has the same contents as {known[contents]}", "Give each scan once")
        known[contents] = path


def _warn_of_odd(scans: Mapping[str, Appearance], detector: Detector) -> None:
    """Warn of scans that look unlike the others; of few scans, unlike those the model was calibrated on before."""
    for name, scan in scans.items():
        others = [other for other in scans.values() if other is not scan][:_COMPARED]
        if len(others) >= ENOUGH:
            usual = HealthyAppearance.of(others)
        elif detector.calibration is not None:
            usual = detector.calibration.appearance
        else:
            continue
        for warning in usual.warnings(scan):
            logger.warning("%s: %s. Is it a healthy scan of this contrast?", name, warning)


def _check_other_model(folder: Path, detector: Detector) -> None:
    if (folder / WEIGHTS).exists() and Detector.load(folder).fingerprint != detector.fingerprint:
        raise InputError(folder, "holds another model", "Choose another folder")


def _write(model: str | Path, folder: Path, health: HealthyMoments | None, calibration: Calibration) -> None:
    """Write the calibrated model; a copy of its settings and weights where it lies elsewhere."""
    # A killed run must leave no calibration, rather than one that does not match the healthy statistics.
    (folder / CALIBRATION).unlink(missing_ok=True)
    with model_folder(model) as source:
        if folder != source:
            _copy_model(source, folder)
    if health is None:
        (folder / HEALTH).unlink(missing_ok=True)
    else:
        health.save(folder / HEALTH)
    write_json(folder / CALIBRATION, calibration.to_dict())


def _copy_model(source: Path, folder: Path) -> None:
    for name in (CONFIG, WEIGHTS):  # the weights come last and mark a complete model
        with atomic_path(folder / name) as temporary:
            shutil.copyfile(source / name, temporary)


def _subject(scan: Scan | Case) -> str:
    if isinstance(scan, Case):
        return scan.subject
    return scan.name.split("_")[0] if scan.kind == "bids" else scan.name


@dataclass(frozen=True)
class _Work:
    """Summarises scans, one call each."""

    detector: Detector
    detector_key: str
    scores: tuple[str, ...]
    summaries: Path
    masks: Path | None
    seed: int
    stage: Callable[[str], None]

    def __call__(self, numbered: tuple[int, Scan | Case]) -> tuple[int, Row, HealthyScan | None]:
        """Return a scan's number, its row and, if it can be used, its summary."""
        index, scan = numbered
        started = time.perf_counter()
        row: Row = {"name": scan.subject if isinstance(scan, Case) else scan.name, "status": "failed"}
        summary, message = None, ""
        try:
            summary, skipped = self.summary(scan)
            row["status"] = "skipped" if skipped else "done"
        except SCAN_ERRORS as error:
            source = scan.image if isinstance(scan, Case) else scan.source
            message = str(error if isinstance(error, InputError) else unusable(source, error))
        row |= {"seconds": round(time.perf_counter() - started, 1), "message": message}
        return index, row, summary

    def summary(self, scan: Scan | Case) -> tuple[HealthyScan, bool]:
        """Return a scan's summary, and whether it was finished before."""
        key, make = self.prepared(scan) if isinstance(scan, Case) else self.raw(scan)
        name = key_of(__version__, _LAYOUT, self.detector_key, self.scores, self.seed, *key)
        entry = self.summaries / f"{name}.npz"
        known = _read_summary(entry)
        if known is not None:
            return known, True
        with device_told_from_scan(self.detector.device):
            made = make()
        with atomic_path(entry) as temporary, temporary.open("wb") as handle:
            np.savez_compressed(handle, allow_pickle=False, **made.to_arrays())
        return made, False

    def prepared(self, case: Case) -> tuple[list[str], Callable[[], HealthyScan]]:
        """Return the hashes that a prepared scan's summary depends on, and a function that makes it."""

        def make() -> HealthyScan:
            loaded = load_case(case, self.detector.data_config)
            maps = self.detector.maps(loaded.image, loaded.mask, self.scores, self.seed)
            return HealthyScan.of(maps.final, maps.raw, loaded.image, loaded.mask)

        return [content_key(case, self.detector.data_config)], make

    def raw(self, scan: Scan) -> tuple[list[str], Callable[[], HealthyScan]]:
        """Return the hashes that a raw scan's summary depends on, and a function that makes it."""
        if scan.fault:
            raise scan.fault
        mask = brain_mask_of(scan, self.masks)

        def make() -> HealthyScan:
            volume, brain = open_with_brain(scan, mask)
            placed, maps, _ = map_scan(
                volume,
                self.detector,
                brain_mask=brain,
                scores=self.scores,
                seed=self.seed,
                stage=lambda name: self.stage(f"{scan.name}: {name}"),
            )
            measured = (placed.image, placed.mask, placed.brain.ml, placed.alignment)
            return HealthyScan.of(maps.final, maps.raw, *measured)

        return [hash_of(scan), sha256(mask) if mask else ""], make


def _read_summary(entry: Path) -> HealthyScan | None:
    """Read a summary; a damaged one counts as absent."""
    try:
        with np.load(entry, allow_pickle=False) as stored:
            return HealthyScan.from_arrays(stored)
    except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile):
        return None
