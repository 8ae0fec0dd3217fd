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
from brainuad.data.extract import brain_mask, on_same_grid
from brainuad.data.frame import alignment, register_to_atlas
from brainuad.data.raw import RawScan
from brainuad.data.tables import write_split
from brainuad.data.volume import Volume
from brainuad.errors import InputError
from brainuad.files import sha256, write_json, write_text


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
    report: Callable[[dict[str, Any]], None] = lambda row: None,
) -> pd.DataFrame:
    """Prepare scans into the paper's layout; finished ones are skipped, failed ones recorded.

    Writes ``Data/Train/ixi`` or ``Data/Test/<dataset>`` with ``t1``, ``t2``, ``mask`` and ``seg``, the split CSVs in
    ``Data/splits``, one JSON sidecar a subject in ``Data/prepared/<dataset>`` and the table ``prepare.csv``.

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
    rows = []
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
    table = pd.DataFrame(rows).sort_values(["dataset", "subject"], ignore_index=True)
    done = {row["subject"] for row in rows if row["status"] != "failed"}
    _write_splits(root, [scan for scan in scans if scan.subject in done])
    path = Path(data_dir) / "prepare.csv"
    if path.exists():  # another data set may have been prepared into this folder before
        before = pd.read_csv(path)
        table = pd.concat([before[~before["dataset"].isin(table["dataset"])], table], ignore_index=True)
    write_text(path, table.to_csv(index=False))
    return table


def _one_thread() -> None:
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def prepare_scan(scan: RawScan, root: Path, settings: Preparation) -> dict[str, Any]:
    """Prepare one subject and return its row of ``prepare.csv``; user errors become a "failed" row."""
    started = time.perf_counter()
    sidecar = root / "prepared" / scan.dataset / f"{scan.subject}.json"
    row: dict[str, Any] = {
        "subject": scan.subject,
        "dataset": scan.dataset,
        "split": scan.split,
        "status": "prepared",
    }
    try:
        inputs = [[path.name, sha256(path)] for path in _inputs(scan)]
        recipe = {"brainuad": __version__, **asdict(settings), "inputs": inputs}
        if sidecar.exists() and (known := json.loads(sidecar.read_text()))["recipe"] == recipe:
            outputs = [root / name for name in known["outputs"]]
            if all(path.exists() for path in outputs):
                return {**row, "status": "skipped", "seconds": 0.0, **known["measured"], "message": ""}
        outputs, measured, transform = _prepare(scan, root, settings)
    except InputError as error:
        return {**row, "status": "failed", "seconds": time.perf_counter() - started, "message": str(error)}
    write_json(
        sidecar,
        {
            "recipe": recipe,
            "outputs": [str(path.relative_to(root)) for path in outputs],
            "measured": measured,
            "atlas_to_scan": transform.tolist(),
        },
    )
    poor = measured["alignment"] < POOR_ALIGNMENT
    message = f"alignment {measured['alignment']:.2f} is low: look at this scan" if poor else ""
    return {**row, "seconds": round(time.perf_counter() - started, 2), **measured, "message": message}


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
    brain = _brain_mask(scan, first)
    lesion = _same_grid(scan.lesion, first).array > 0.5 if scan.lesion else None
    for modality, image in images.items():
        if image.array.shape != first.array.shape:
            raise InputError(
                scan.images[modality],
                f"has shape {image.array.shape}, not {first.array.shape}",
                "Co-register it",
            )
        values = image.array[brain]
        if values.min() == values.max():
            fault = f"is constant inside the brain ({values[0]:g})"
            raise InputError(scan.images[modality], fault, "Convert the scan again")

    transform = register_to_atlas(first.with_array(first.array * brain), seed=settings.seed)
    try:
        located = AtlasBrain.locate(first.with_array(brain), transform, spacing=settings.spacing)
    except ValueError as error:
        raise InputError(first_path(scan), str(error), "Check orientation and brain mask") from error

    base = root / ("Train" if scan.dataset == "ixi" else "Test") / scan.dataset
    outputs = []

    def save(kind: str, volume: Volume, dtype: type[np.generic]) -> None:
        path = base / kind / f"{scan.subject}_{kind}.nii.gz"
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
        save(modality, located.correct(resampled), np.float32)
    save("mask", located.cut(located.mask), np.uint8)
    if lesion is not None:
        on_grid = located.frame.to_model(first.with_array(lesion), transform, order=0) > 0.5
        save("seg", located.cut(on_grid), np.uint8)
    return outputs, measured, transform


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


def _brain_mask(scan: RawScan, image: Volume) -> np.ndarray:
    given = _same_grid(scan.mask, image) if scan.mask else None
    try:
        return brain_mask(image, given)
    except ValueError as error:
        raise InputError(
            scan.mask or first_path(scan), str(error), "Give a mask that is above 0 in the brain"
        ) from error


def _write_splits(root: Path, scans: list[RawScan]) -> None:
    """Write the CSVs of the layout: IXI's fold 0 and test, and each other set's validation and test cases."""
    tables: dict[str, list[dict[str, object]]] = {}
    for scan in scans:
        if scan.split:
            fold = "_fold0" if scan.dataset == "ixi" and scan.split != "test" else ""
            name = f"{'IXI' if scan.dataset == 'ixi' else scan.dataset}_{scan.split}{fold}"
            tables.setdefault(name, []).append(_split_row(scan))
    for name, rows in tables.items():
        write_split(root / "splits" / f"{name}.csv", rows)


def _split_row(scan: RawScan) -> dict[str, object]:
    base = f"/{'Train' if scan.dataset == 'ixi' else 'Test'}/{scan.dataset}"
    return {
        "img_name": f"{scan.subject}_t1.nii.gz",
        "age": scan.age if scan.age is not None else "",
        "label": int(scan.lesion is not None),
        # The layout names the t1 file also where only a t2 exists; readers derive the t2 path from it.
        "img_path": f"{base}/t1/{scan.subject}_t1.nii.gz",
        "mask_path": f"{base}/mask/{scan.subject}_mask.nii.gz",
        "seg_path": f"{base}/seg/{scan.subject}_seg.nii.gz" if scan.lesion is not None else "",
    }
