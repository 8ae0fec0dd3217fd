"""From raw scans to the paper's data layout: atlas registration, bounding box, bias correction."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import SimpleITK as sitk

from brainuad._version import __version__
from brainuad.data.atlas import POOR_ALIGNMENT, AtlasBrain
from brainuad.data.cohort import HEALTHY_SET, MANIFEST_COLUMNS, SPLITS
from brainuad.data.extract import find_brain, on_same_grid
from brainuad.data.frame import alignment, register_to_atlas, resample
from brainuad.data.raw import RawScan
from brainuad.data.tables import SPLIT_COLUMNS, read_table
from brainuad.data.volume import Volume
from brainuad.errors import InputError
from brainuad.files import sha256, write_json, write_text

Row = dict[str, Any]
PREPARE_COLUMNS = (
    "subject", "dataset", "split", "status", "seconds", "alignment", "brain_ml", "message"
)  # fmt: skip


@dataclass(frozen=True)
class Preparation:
    """Settings of a preparation, kept with its results.

    Attributes:
        spacing: Voxel size of the result in mm: 1 (published protocol) or 2 (the model's grid).
        seed: Seeds the registration's sampling.
    """

    spacing: float = 1.0
    seed: int = 0


def prepare_cohort(
    scans: list[RawScan],
    data_dir: str | Path,
    settings: Preparation,
    *,
    jobs: int = 1,
    report: Callable[[Row], None] = lambda row: None,
) -> pd.DataFrame:
    """Prepare scans into the paper's layout; finished ones are skipped, failed ones recorded.

    Writes ``Data/Train/ixi`` or ``Data/Test/<dataset>`` with ``t1``, ``t2``, ``mask`` and ``seg``, ``labels`` where the
    given mask is a parcellation, and one JSON sidecar a subject in ``Data/prepared/<dataset>``. At the end, or when
    interrupted, it brings these tables up to date; rows of subjects that are not in this run stay:

    - ``prepare.csv``: every subject's row;
    - ``Data/splits``: the split CSVs of the paper's layout;
    - ``manifest.csv`` for T1 and ``manifest_t2.csv`` for T2: whatever was prepared and has a split, of any data set.

    Args:
        scans: What to prepare.
        data_dir: Folder of the layout; created where missing.
        settings: See :class:`Preparation`.
        jobs: Processes.
        report: Called with each subject's row as it is done.

    Returns:
        One row a subject: subject, dataset, split, status ("prepared", "skipped" or "failed"), seconds, alignment
        (correlation with the atlas), brain_ml, message.
    """
    root = Path(data_dir) / "Data"
    rows: list[Row] = []
    # Fresh processes: forking a process in which ITK or torch threads have run can deadlock.
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        futures = {pool.submit(prepare_scan, scan, root, settings): scan for scan in scans}
        try:
            for future in as_completed(futures):
                rows.append(future.result())
                report(rows[-1])
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        finally:  # an interrupted run leaves its tables too
            _write_tables(Path(data_dir), scans, rows)
    return pd.DataFrame(rows).sort_values(["dataset", "subject"], ignore_index=True)


def _one_thread() -> None:
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def prepare_scan(scan: RawScan, root: Path, settings: Preparation) -> Row:
    """Prepare one subject and return its row of ``prepare.csv``; user errors become a "failed" row."""
    started = time.perf_counter()
    sidecar = root / "prepared" / scan.dataset / f"{scan.subject}.json"
    row: Row = {
        "subject": scan.subject,
        "dataset": scan.dataset,
        "split": scan.split,
        "status": "prepared",
    }
    try:
        inputs = [[path.name, sha256(path)] for path in _inputs(scan)]
        recipe = {"brainuad": __version__, **asdict(settings), "inputs": inputs}
        if (measured := _measured_before(sidecar, recipe, root)) is not None:
            note = _message(scan, measured["alignment"])
            return {**row, "status": "skipped", "seconds": 0.0, **measured, "message": note}
        outputs, measured, transform = _prepare(scan, root, settings)
        record = {"recipe": recipe, "outputs": [str(path.relative_to(root)) for path in outputs]}
        write_json(sidecar, {**record, "measured": measured, "atlas_to_scan": transform.tolist()})
    except (InputError, ValueError) as error:
        if not isinstance(error, InputError):
            error = InputError(first_path(scan), str(error), "Check orientation and brain mask")
        seconds = round(time.perf_counter() - started, 2)
        return {**row, "status": "failed", "seconds": seconds, "message": str(error)}
    seconds = round(time.perf_counter() - started, 2)
    return {**row, "seconds": seconds, **measured, "message": _message(scan, measured["alignment"])}


def _measured_before(sidecar: Path, recipe: Row, root: Path) -> dict[str, float] | None:
    """Return what was measured when the scan was prepared by this recipe; None if it was not, or files are gone."""
    try:
        known = json.loads(sidecar.read_text(encoding="utf-8"))
        if known["recipe"] != recipe or not all((root / name).exists() for name in known["outputs"]):
            return None
        return {name: float(known["measured"][name]) for name in ("alignment", "brain_ml")}
    except (OSError, ValueError, KeyError, TypeError):  # absent, or damaged, which is as good as absent
        return None


def _message(scan: RawScan, aligned: float) -> str:
    notes = []
    if aligned < POOR_ALIGNMENT:
        notes.append(f"alignment {aligned:.2f} is low: look at this scan")
    if not scan.split:
        notes.append("has no split, so no split CSV or manifest lists it")
    return "; ".join(notes)


def _inputs(scan: RawScan) -> list[Path]:
    paths = [*scan.images.values(), *(path for path in (scan.mask, scan.lesion) if path)]
    for path in paths:
        if not path.exists():
            raise InputError(path, "no such file", f"It is needed for subject {scan.subject}")
    return paths


def _prepare(
    scan: RawScan, root: Path, settings: Preparation
) -> tuple[list[Path], dict[str, float], np.ndarray]:
    images = {modality: Volume.load(path) for modality, path in scan.images.items()}
    first = images.get("t1") or next(iter(images.values()))
    given = _same_grid(scan.mask, first) if scan.mask else None
    brain = _brain_mask(scan, first, given)
    lesion = _same_grid(scan.lesion, first).array > 0.5 if scan.lesion else None
    for modality in images:
        # Scans of one session share scanner space, though not always a grid.
        image = images[modality] = _on_grid(images[modality], first)
        values = image.array[brain]
        if values.min() == values.max():
            fault = f"is constant inside the brain ({values[0]:g})"
            raise InputError(scan.images[modality], fault, "Convert the scan again")

    transform = register_to_atlas(first.with_array(first.array * brain), seed=settings.seed)
    located = AtlasBrain.locate(first.with_array(brain), transform, spacing=settings.spacing)

    outputs = []

    def save(kind: str, volume: Volume, dtype: type[np.generic]) -> None:
        path = root / _place(scan, kind)
        volume.save(path, dtype)
        outputs.append(path)

    measured = {
        "alignment": 0.0,
        "brain_ml": round(float(located.mask.sum()) * settings.spacing**3 / 1000, 1),
    }
    for modality, image in images.items():
        resampled = located.resample(image.with_array(image.array * brain))
        if image is first:
            measured["alignment"] = round(alignment(resampled, located.frame), 4)
            if not np.isfinite(measured["alignment"]):
                raise ValueError("could not be registered to the atlas (nothing of it lies there)")
        save(modality, located.correct(resampled), np.float32)
    save("mask", located.cut(located.mask), np.uint8)
    if given is not None and _is_parcellation(given):
        labels = located.cut(located.frame.to_model(given, transform, order=0))
        save("labels", labels, np.uint8 if given.array.max() <= 255 else np.uint16)
    if lesion is not None:
        on_grid = located.frame.to_model(first.with_array(lesion), transform, order=0) > 0.5
        save("seg", located.cut(on_grid), np.uint8)
    return outputs, measured, transform


def _on_grid(image: Volume, target: Volume) -> Volume:
    """Return a scan on the grid of another one, by their affines; unchanged if it lies there already."""
    if on_same_grid(image, target):
        return image
    matrix = np.linalg.inv(image.affine) @ target.affine
    return target.with_array(resample(image.array, matrix, target.array.shape, order=3))


def first_path(scan: RawScan) -> Path:
    """Return the image that registration looks at."""
    return scan.images.get("t1") or next(iter(scan.images.values()))


def _same_grid(path: Path, image: Volume) -> Volume:
    label = Volume.load(path)
    if not on_same_grid(label, image):
        raise InputError(
            path,
            f"lies on another grid than its image ({label.array.shape}, {image.array.shape})",
            "Resample it",
        )
    return label


def _is_parcellation(mask: Volume) -> bool:
    """Whether a brain mask holds several whole-number labels."""
    values = np.unique(mask.array)
    return bool((values > 0).sum() > 1 and (values == np.rint(values)).all())


def _brain_mask(scan: RawScan, image: Volume, given: Volume | None) -> np.ndarray:
    try:
        modality = "t1" if "t1" in scan.images else next(iter(scan.images))
        return find_brain(image, given, modality=modality).mask
    except ValueError as error:
        raise InputError(
            scan.mask or first_path(scan), str(error), "Give a mask that is above 0 in the brain"
        ) from error


def _place(scan: RawScan, kind: str) -> str:
    """Return where the layout keeps a scan's "t1", "t2", "mask", "labels" or "seg", relative to ``Data``."""
    base = "Train" if scan.dataset == "ixi" else "Test"
    return f"{base}/{scan.dataset}/{kind}/{scan.subject}_{kind}.nii.gz"


def _write_tables(data_dir: Path, scans: list[RawScan], rows: list[Row]) -> None:
    """Bring prepare.csv, the splits and the manifests up to date with the ``rows`` of some of the ``scans``."""
    status = {(row["dataset"], row["subject"]): row["status"] for row in rows}
    seen = [scan for scan in scans if (scan.dataset, scan.subject) in status]
    listed = [scan for scan in seen if scan.split and status[scan.dataset, scan.subject] != "failed"]

    table = _merge(data_dir / "prepare.csv", ("dataset", "subject"), rows, rows)
    _write_rows(
        data_dir / "prepare.csv", PREPARE_COLUMNS, sorted(table, key=lambda r: (r["dataset"], r["subject"]))
    )
    for dataset in sorted({scan.dataset for scan in seen}):
        for split in SPLITS:
            # A subject whose split changed, or that failed this time, leaves the files that listed it before.
            old = [_split_row(scan) for scan in seen if scan.dataset == dataset]
            new = [_split_row(scan) for scan in listed if (scan.dataset, scan.split) == (dataset, split)]
            fold = "_fold0" if dataset == "ixi" and split != "test" else ""
            path = data_dir / "Data" / "splits" / f"{_listed_name(dataset)}_{split}{fold}.csv"
            _write_rows(path, SPLIT_COLUMNS, _merge(path, ("img_path",), old, new))
    for modality, name in (("t1", "manifest.csv"), ("t2", "manifest_t2.csv")):
        # All that was seen goes, not only scans of this modality: their brain masks may have been written anew.
        old = [_manifest_row(scan, modality) for scan in seen]
        new = [_manifest_row(scan, modality) for scan in listed if modality in scan.images]
        _write_rows(
            data_dir / name,
            (*MANIFEST_COLUMNS, "dataset", "age"),
            _merge(data_dir / name, ("dataset", "subject"), old, new),
        )


def _merge(path: Path, key: tuple[str, ...], old: list[Row], new: list[Row]) -> list[Row]:
    """Return a table's rows without those that have the key of one in ``old``, and ``new`` after them."""
    gone = {tuple(row[column] for column in key) for row in old}
    before = [row for row, _ in read_table(path, required=key)] if path.exists() else []
    return [row for row in before if tuple(row[column] for column in key) not in gone] + new


def _write_rows(path: Path, columns: tuple[str, ...], rows: list[Row]) -> None:
    if rows:
        write_text(path, pd.DataFrame(rows, columns=list(columns)).to_csv(index=False, lineterminator="\n"))
    else:
        path.unlink(missing_ok=True)  # readers take a table without rows for a mistake


def _listed_name(dataset: str) -> str:
    return HEALTHY_SET if dataset == "ixi" else dataset


def _split_row(scan: RawScan) -> Row:
    return {
        "img_name": f"{scan.subject}_t1.nii.gz",
        "age": scan.age if scan.age is not None else "",
        "label": scan.label,
        # The layout names the t1 file also where only a t2 exists; readers derive the t2 path from it.
        "img_path": "/" + _place(scan, "t1"),
        "mask_path": "/" + _place(scan, "mask"),
        "seg_path": "/" + _place(scan, "seg") if scan.lesion is not None else "",
    }


def _manifest_row(scan: RawScan, modality: str) -> Row:
    return {
        "subject": scan.subject,
        "image": "Data/" + _place(scan, modality),
        "mask": "Data/" + _place(scan, "mask"),
        "seg": "Data/" + _place(scan, "seg") if scan.lesion is not None else "",
        "label": scan.label,
        "split": scan.split,
        "dataset": _listed_name(scan.dataset),
        "age": scan.age if scan.age is not None else "",
    }
