"""Prepare one subject: brain mask, registration to the atlas, bias correction, files."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from brainuad._version import __version__
from brainuad.data.atlas import corrected, place_brain, sample_brain
from brainuad.data.bias import with_bias_levels
from brainuad.data.extract import PUBLISHED_BIAS_LEVELS, Brain, extracted_brain, find_brain, on_same_grid
from brainuad.data.intensity import on_zero
from brainuad.data.placement import POOR_ALIGNMENT, Placement, alignment, resample
from brainuad.data.registration import register_to_atlas, register_within_session, unregistered
from brainuad.data.volume import Volume
from brainuad.errors import InputError, blame
from brainuad.files import finished_record, write_json
from brainuad.prepare.hdbet import PROGRAM, hdbet_mask
from brainuad.prepare.raw import RawScan
from brainuad.prepare.raw.archives import digest, read_volume

Row = dict[str, Any]
_Volumes = dict[str, tuple[Volume, type[np.generic]]]  # with the data type to store
# least fraction of the brain that a second image must show, and the fraction below which a note says so
_LITTLE, _MOST = 0.5, 0.95


@dataclass(frozen=True)
class Preparation:
    """Settings of a preparation, kept with its results."""

    spacing: float = 1.0  # voxel size of the result in mm: 1 (published protocol) or 2 (the model's grid)
    seed: int = 0  # seeds the registration's sampling
    # of scans with skull and without mask: "deepbet", for T1, or the published protocol's "hd-bet", if it is installed
    extractor: str = "deepbet"
    # see brainuad.data.extract.correct_bias: 4 in the published protocol, 1 in the lite models
    bias_levels: int = PUBLISHED_BIAS_LEVELS


@dataclass(frozen=True, eq=False)
class _Prepared:
    """A prepared subject, not yet written."""

    volumes: _Volumes  # by "t1", "t2", "flair", "mask", "labels" and "seg"
    measured: Row  # figures of ``prepare.csv``
    notes: list[str]
    atlas_to_scan: dict[str, np.ndarray]  # (4, 4) by modality, atlas mm to scanner mm of that image


def prepare_scan(scan: RawScan, root: Path, settings: Preparation) -> Row:
    """Prepare one subject and return its row of ``prepare.csv``; user errors become a "failed" row.

    An image of another modality that cannot be prepared is left out, and the row says so.
    """
    started = time.perf_counter()
    sidecar = root / "prepared" / scan.dataset / f"{scan.subject}.json"
    try:
        recipe = {"brainuad": __version__, **asdict(settings), "inputs": _inputs(scan)}
        if (record := _known_before(sidecar, recipe, root, scan)) is not None:
            row = _row(scan, "skipped", 0.0)
        else:
            prepared, left_out = _prepare_what_can_be(scan, settings)
            for kind, (volume, dtype) in prepared.volumes.items():
                volume.save(root / scan.output_path(kind), dtype)
            for modality in left_out:  # left by an earlier run
                (root / scan.output_path(modality)).unlink(missing_ok=True)
            first, *others = prepared.atlas_to_scan
            record = {
                "recipe": recipe,
                "outputs": [scan.output_path(kind) for kind in prepared.volumes],
                "measured": prepared.measured,
                "notes": prepared.notes + [f"{modality} is left out: {fault}" for modality, fault in left_out.items()],
                "left_out": left_out,
                "atlas_to_scan": prepared.atlas_to_scan[first].tolist(),
                "atlas_to_other": {name: prepared.atlas_to_scan[name].tolist() for name in others},
            }
            write_json(sidecar, record)
            row = _row(scan, "prepared", time.perf_counter() - started)
    except InputError as error:
        return failed_row(scan, str(error), time.perf_counter() - started)
    note = _message(scan, record["measured"], record["notes"])
    return {**row, **record["measured"], "left_out": record["left_out"], "message": note}


def failed_row(scan: RawScan, message: str, seconds: float = 0.0) -> Row:
    """Return the row of a subject that could not be prepared."""
    return _row(scan, "failed", seconds) | {"message": message}


def _row(scan: RawScan, status: str, seconds: float) -> Row:
    about = {"subject": scan.subject, "dataset": scan.dataset, "split": scan.split}
    return {**about, "status": status, "seconds": round(seconds, 2)}


def _inputs(scan: RawScan) -> list[list[str | None]]:
    """Return name and hash of every file; no hash for an unreadable image of another modality."""
    result: list[list[str | None]] = []
    optional = [path for modality, path in scan.images.items() if modality != scan.modality]
    for path in (*scan.images.values(), *(path for path in (scan.mask, scan.lesion) if path)):
        try:
            result.append([path.name, digest(path)])
        except InputError:
            if path not in optional:
                raise
            result.append([path.name, None])
    return result


def _known_before(sidecar: Path, recipe: Row, root: Path, scan: RawScan) -> Row | None:
    """Return the sidecar of a scan that was prepared by this recipe; None if it was not, or if files are missing."""

    def outputs(record: Row) -> list[Path]:
        _message(scan, record["measured"], record["notes"])  # raises where the record is damaged
        if scan.modality in record["left_out"]:
            raise ValueError("it was left out")
        return [root / name for name in record["outputs"]]

    return finished_record(sidecar, recipe, outputs)


def _message(scan: RawScan, measured: Row, notes: list[str]) -> str:
    notes = list(notes)
    if "t1" in scan.images and measured["alignment"] < POOR_ALIGNMENT:  # with the T1 atlas
        notes.append(f"alignment {measured['alignment']:.2f} is low: look at this scan")
    if not scan.split:
        notes.append("has no split, so no split CSV or manifest lists it")
    return "; ".join(notes)


def _prepare_what_can_be(scan: RawScan, settings: Preparation) -> tuple[_Prepared, dict[str, str]]:
    """Prepare a subject, and return the images besides the requested one that had to be left out, with their faults."""
    left_out: dict[str, str] = {}
    while True:
        try:
            return _prepare(scan, settings), left_out
        except InputError as error:
            guilty = [name for name, path in scan.images.items() if str(path) == error.subject]
            if not guilty or scan.modality in guilty:
                raise
            left_out[guilty[0]] = str(error)
            images = {name: path for name, path in scan.images.items() if name not in guilty}
            scan = replace(scan, images=images)


def _prepare(scan: RawScan, settings: Preparation) -> _Prepared:
    images = {modality: read_volume(path) for modality, path in scan.images.items()}
    for modality, image in images.items():
        image.check_scan(scan.images[modality])
        with blame(scan.images[modality], "Look at its values"):
            images[modality] = image.with_array(on_zero(image.array))
    leading = "t1" if "t1" in images else next(iter(images))
    first, path = images[leading], scan.images[leading]
    given = _same_grid(scan.mask, first) if scan.mask else None
    lesion = _lesion(scan, first)
    brain = _find_brain(scan, leading, first, given, settings.extractor)
    notes = list(brain.warnings)

    with blame(path, "Check orientation and brain mask"):
        extracted = first.with_array(first.array * brain.mask)
        transform = register_to_atlas(extracted, seed=settings.seed)
        placement, mask = place_brain(first.with_array(brain.mask), transform, spacing=settings.spacing)
        resampled = sample_brain(extracted, placement, mask)
        aligned = round(alignment(resampled, placement), 4)
        if not np.isfinite(aligned):
            raise unregistered()
        volumes: _Volumes = {leading: (_corrected(resampled, placement, mask, settings), np.float32)}

    transforms = {leading: transform}
    for modality, image in images.items():
        if modality == leading:
            continue
        with blame(scan.images[modality], "Leave it out, or give it on the grid of the other image"):
            moved = np.eye(4)
            if not on_same_grid(image, first):
                moved = register_within_session(first, brain.mask, image, seed=settings.seed)
            extracted, shown = _extract_like(first, brain.mask, image, moved)
            if shown < _MOST:
                notes.append(f"{modality} shows only {shown:.0%} of the brain")
            transforms[modality] = moved @ transform
            resampled = sample_brain(extracted, replace(placement, atlas_to_scan=transforms[modality]), mask)
            volumes[modality] = _corrected(resampled, placement, mask, settings), np.float32

    volumes["mask"] = placement.cut(mask, mask), np.uint8
    if given is not None and _is_parcellation(given):
        labels = placement.cut(placement.sample(given, order=0), mask)
        volumes["labels"] = labels, np.uint8 if given.array.max() <= 255 else np.uint16
    if lesion is not None:
        volumes["seg"] = placement.cut(placement.sample_mask(first.with_array(lesion)), mask), np.uint8
    measured = {
        "alignment": aligned,
        "brain_ml": round(float(mask.sum()) * settings.spacing**3 / 1000, 1),
        "brain": brain.source,
    }
    return _Prepared(volumes, measured, notes, transforms)


def _corrected(resampled: np.ndarray, placement: Placement, mask: np.ndarray, settings: Preparation) -> Volume:
    return with_bias_levels(corrected(resampled, placement, mask, settings.bias_levels), settings.bias_levels)


def _find_brain(scan: RawScan, modality: str, image: Volume, given: Volume | None, extractor: str) -> Brain:
    remedy = "Give a mask that is above 0.5 in the brain"
    if scan.mask and given is not None and not given.inside.any():
        raise InputError(scan.mask, "the brain mask holds nothing above 0.5", remedy)
    if modality != "t1":
        remedy += f", or the T1 scan of the session, or --extractor {PROGRAM}"
    with blame(scan.images[modality], remedy):
        if not (given is None and extractor == PROGRAM and extracted_brain(image) is None):
            return find_brain(image, given, modality=modality)
    with blame(scan.images[modality], f"Look at the image and at what {PROGRAM} finds in it, or give a brain mask"):
        found = image.with_array(hdbet_mask(image))
        return replace(find_brain(image, found, modality=modality), source=PROGRAM)


def _extract_like(first: Volume, brain: np.ndarray, image: Volume, moved: np.ndarray) -> tuple[Volume, float]:
    """Return an image cropped to the brain of the ``first`` one, and the fraction of that brain that it shows."""
    matrix = np.linalg.inv(first.affine) @ np.linalg.inv(moved) @ image.affine
    there = resample(brain, matrix, image.array.shape, order=0) > 0.5
    shown = float(there.sum() * image.voxel_ml / (brain.sum() * first.voxel_ml))
    if shown < _LITTLE:
        raise ValueError(f"shows only {shown:.0%} of the brain")
    values = image.array[there]
    if values.min() == values.max():
        raise ValueError(f"is constant inside the brain ({values[0]:g})")
    return image.with_array(image.array * there), shown


def _lesion(scan: RawScan, first: Volume) -> np.ndarray | None:
    if scan.lesion is None:
        return None
    labels = _same_grid(scan.lesion, first)
    if scan.lesion_label is not None:
        labels = labels.with_array(np.rint(labels.array) == scan.lesion_label)
    if fault := labels.outline_fault():
        raise InputError(scan.lesion, fault, "Give the outline of the lesions")
    return labels.inside


def _is_parcellation(mask: Volume) -> bool:
    """Return whether a brain mask holds several whole-number labels."""
    values = np.unique(mask.array)
    return bool((values > 0).sum() > 1 and (values == np.rint(values)).all())


def _same_grid(path: Path, image: Volume) -> Volume:
    label = read_volume(path)
    if not on_same_grid(label, image):
        fault = f"lies on another grid than its image ({label.array.shape}, {image.array.shape})"
        raise InputError(path, fault, "Resample it")
    return label
