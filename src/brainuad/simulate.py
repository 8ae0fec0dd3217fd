"""Simulated cohorts: healthy scans with lesions put into them, and a manifest that training and evaluation take."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.resources import as_file, files
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import ndimage

from brainuad._version import __version__
from brainuad.data.cohort import MANIFEST_COLUMNS, Case
from brainuad.data.extract import on_same_grid
from brainuad.data.simulate import (
    Lesion,
    Levels,
    Tissues,
    levels_of,
    ms,
    paint,
    stroke_lesion,
    tumour,
    wmh,
)
from brainuad.data.volume import Volume
from brainuad.errors import InputError
from brainuad.files import sha256, write_json, write_text

Row = dict[str, Any]
DRAWN = {"ms": ms, "wmh": wmh, "tumour": tumour}
KINDS = ("stroke", *DRAWN)
HEALTHY = "healthy"
COLUMNS = (*MANIFEST_COLUMNS, "dataset", "age", "kind", "contrast", "volume_ml", "lesions")


@dataclass(frozen=True)
class Simulation:
    """Settings of a simulated cohort, kept with it.

    Attributes:
        kinds: Which lesions, of ``KINDS``; each subject gets one scan with each.
        modality: "t1".
        seed: Seeds all randomness, with the subject and the kind.
        contrast: Multiple of the usual strength of lesions.
        size: Multiple of their usual volume.
    """

    kinds: tuple[str, ...] = KINDS
    modality: str = "t1"
    seed: int = 0
    contrast: float = 1.0
    size: float = 1.0


@dataclass(frozen=True, eq=False)
class Healthy:
    """A healthy subject's scan with what is needed to put lesions into it."""

    case: Case
    image: Volume
    mask: Volume
    tissues: Tissues
    levels: Levels

    @property
    def brain(self) -> np.ndarray:
        """``(X, Y, Z)`` bool."""
        return self.tissues.brain


@contextmanager
def shipped_outlines() -> Iterator[Path]:
    """Yield the folder of the stroke outlines that come with the package."""
    with as_file(files("brainuad.assets") / "strokes") as folder:
        yield folder


def simulate_cohort(
    cases: Sequence[Case],
    output: str | Path,
    settings: Simulation,
    *,
    outlines: str | Path,
    jobs: int = 1,
    report: Callable[[Row], None] = lambda row: None,
) -> pd.DataFrame:
    """Put lesions of every kind into healthy scans; finished subjects are skipped, failed ones recorded.

    Training subjects get no lesions. Writes, flat in ``output``, images of 8 bits (0 to the 99.8th percentile of the
    healthy brain), brain masks, ground truths and one JSON sidecar a subject; then ``manifest.csv`` and
    ``simulation.json`` of this run.

    Args:
        cases: Healthy scans in atlas space, as ``brainuad prepare`` writes them, with MUSE labels beside them.
        output: Folder; created where missing.
        settings: See :class:`Simulation`.
        outlines: Folder of stroke outlines, NIfTI in MNI152 space. No two subjects get the same.
        jobs: Processes.
        report: Called with each subject's row as it is done.

    Returns:
        One row a subject: subject, split, status ("simulated", "skipped" or "failed"), scans, seconds, message.

    Raises:
        InputError: There is no healthy scan, or there are no outlines.
    """
    cases = sorted((case for case in cases if case.label == 0), key=lambda case: case.subject)
    if not cases:
        raise InputError(output, "no healthy scan was found to put lesions into", "Give scans of label 0")
    patients = [case.subject for case in cases if case.split != "train"]
    offered = _deal(Path(outlines), patients, settings)
    folder = Path(output)
    results = []
    # Fresh processes: forking a process in which ITK or torch threads have run can deadlock.
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = [
            pool.submit(simulate_subject, case, folder, settings, offered.get(case.subject, []))
            for case in cases
        ]
        try:
            for future in as_completed(futures):
                results.append(future.result())
                report(results[-1][0])
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    results.sort(key=lambda result: str(result[0]["subject"]))
    rows = [row for _, record in results for row in record.get("rows", [])]
    if rows:
        table = pd.DataFrame(rows, columns=list(COLUMNS))
        write_text(folder / "manifest.csv", table.to_csv(index=False, lineterminator="\n"))
    parameters = {summary["subject"]: record.get("parameters", {}) for summary, record in results}
    about = {"brainuad": __version__, "simulated": True, "settings": asdict(settings)}
    write_json(folder / "simulation.json", {**about, "subjects": parameters})
    return pd.DataFrame([summary for summary, _ in results])


def _deal(outlines: Path, subjects: Sequence[str], settings: Simulation) -> dict[str, list[Path]]:
    """Deal shuffled outlines to subjects like cards: whom each may try, in order."""
    if "stroke" not in settings.kinds:
        return {}
    paths = sorted(path for path in outlines.glob("*.nii*") if path.is_file())
    if len(paths) < len(subjects):
        fault = f"holds {len(paths)} outlines (*.nii.gz) for {len(subjects)} subjects"
        raise InputError(outlines, fault, "Give more, or leave out the kind stroke")
    order = np.random.default_rng([settings.seed, zlib.crc32(b"outlines")]).permutation(len(paths))
    return {
        subject: [paths[i] for i in order[place :: len(subjects)]] for place, subject in enumerate(subjects)
    }


def simulate_subject(
    case: Case, folder: Path, settings: Simulation, outlines: Sequence[Path]
) -> tuple[Row, Row]:
    """Write one subject's scans; user errors become a "failed" row.

    Returns:
        The subject's row for the user; and its sidecar with manifest rows and parameters, empty if it failed.
    """
    started = time.perf_counter()
    summary: Row = {"subject": case.subject, "split": case.split, "status": "simulated", "scans": 0}
    try:
        labels = labels_path(case)
        inputs = [[path.name, sha256(path)] for path in (case.image, case.mask, labels, *outlines)]
        recipe = {"brainuad": __version__, **asdict(settings), "split": case.split, "inputs": inputs}
        recipe = json.loads(json.dumps(recipe))  # as it is read back: lists for tuples
        sidecar = folder / f"{case.subject}.json"
        record = _simulated_before(folder, sidecar, recipe)
        if record is None:
            healthy = load_healthy(case, labels)
            rows, parameters = _write_scans(healthy, folder, settings, outlines)
            record = {"recipe": recipe, "rows": rows, "parameters": parameters}
            write_json(sidecar, record)
        else:
            summary["status"] = "skipped"
    except (InputError, ValueError) as error:
        message = str(error) if isinstance(error, InputError) else f"{case.image}: {error}"
        seconds = round(time.perf_counter() - started, 2)
        return {**summary, "status": "failed", "seconds": seconds, "message": message}, {}
    summary["scans"] = len(record["rows"])
    return {**summary, "seconds": round(time.perf_counter() - started, 2), "message": ""}, record


def _simulated_before(folder: Path, sidecar: Path, recipe: Row) -> Row | None:
    """Return the sidecar of a subject that was simulated by this recipe; None if it was not, or files are gone."""
    try:
        known: Row = json.loads(sidecar.read_text(encoding="utf-8"))
        names = [row[column] for row in known["rows"] for column in ("image", "mask", "seg") if row[column]]
        if known["recipe"] != recipe or not all((folder / name).is_file() for name in names):
            return None
        return known
    except (OSError, ValueError, KeyError, TypeError):  # absent, or damaged, which is as good as absent
        return None


def labels_path(case: Case) -> Path:
    """Return the parcellation of a scan, as the paper's layout or a flat folder has it.

    Raises:
        InputError: There is none.
    """
    image = case.image
    name = image.name.replace("_t1.nii", "_labels.nii")
    for path in (image.parent.parent / "labels" / name, image.parent / name):
        if name != image.name and path.is_file():
            return path
    remedy = "`brainuad prepare` writes it where the brain mask it is given is a MUSE parcellation"
    raise InputError(image, f"has no parcellation {image.parent.parent / 'labels' / name}", remedy)


def load_healthy(case: Case, labels: Path) -> Healthy:
    """Read a healthy scan with its mask and parcellation.

    Raises:
        InputError: A file is missing, damaged or of another grid, or the labels are not MUSE's.
    """
    image, mask, parcellation = Volume.load(case.image), Volume.load(case.mask), Volume.load(labels)
    for path, other in ((case.mask, mask), (labels, parcellation)):
        if not on_same_grid(other, image):
            raise InputError(path, "lies on another grid than its image", f"Resample it onto {case.image}")
    try:
        tissues = Tissues.from_labels(parcellation.array, mask.array > 0.5, image.spacing)
    except ValueError as error:
        raise InputError(labels, str(error), "Prepare the scans from a MUSE parcellation") from error
    return Healthy(case, image, mask, tissues, levels_of(image.array, tissues))


def _write_scans(
    healthy: Healthy, folder: Path, settings: Simulation, outlines: Sequence[Path]
) -> tuple[list[Row], Row]:
    """Write the healthy scan and one with each kind of lesion; return their manifest rows and parameters."""
    case, image, modality = healthy.case, healthy.image, settings.modality
    scale = 255 / float(np.percentile(image.array[healthy.brain], 99.8))
    mask = f"{case.subject}_mask.nii.gz"
    healthy.mask.save(folder / mask, np.uint8)

    def row(kind: str, array: np.ndarray, truth: np.ndarray | None) -> Row:
        stem = case.subject if kind == HEALTHY else f"{case.subject}_{kind}"
        image.with_array(array * scale).save(folder / f"{stem}_{modality}.nii.gz", np.uint8)
        if truth is not None:
            image.with_array(truth).save(folder / f"{stem}_seg.nii.gz", np.uint8)
        return {
            "subject": case.subject,
            "image": f"{stem}_{modality}.nii.gz",
            "mask": mask,
            "seg": "" if truth is None else f"{stem}_seg.nii.gz",
            "label": int(truth is not None),
            "split": case.split,
            "dataset": f"{case.dataset} healthy" if kind == HEALTHY else f"simulated {kind}",
            "age": "" if case.age is None else case.age,
            "kind": kind,
            "contrast": "",
            "volume_ml": 0.0,
            "lesions": 0,
        }

    rows: list[Row] = [row(HEALTHY, image.array, None)]
    parameters: Row = {HEALTHY: {"levels": asdict(healthy.levels), "file_units": scale}}
    for kind in settings.kinds if case.split != "train" else ():
        rng = np.random.default_rng(
            [settings.seed, zlib.crc32(case.subject.encode()), zlib.crc32(kind.encode())]
        )
        lesion = _draw(kind, healthy, settings, outlines, rng)
        sick = paint(image.array, lesion, healthy.levels, healthy.brain, rng)
        truth = lesion.truth()
        if not truth.any():
            fault = f"no voxel is half covered by a simulated lesion of kind {kind}"
            raise InputError(case.image, fault, "Raise --size, or use a finer grid")
        measured = measure(image.array, sick, truth > 0, healthy)
        rows.append({**row(kind, sick, truth), **measured})
        parameters[kind] = lesion.parameters
    return rows, parameters


def _draw(
    kind: str, healthy: Healthy, settings: Simulation, outlines: Sequence[Path], rng: np.random.Generator
) -> Lesion:
    strength_and_size = {"contrast": settings.contrast, "size": settings.size}
    if kind in DRAWN:
        return DRAWN[kind](healthy.tissues, rng, modality=settings.modality, **strength_and_size)
    for path in outlines:
        outline = Volume.load(path)
        lesion = stroke_lesion(healthy.tissues, rng, healthy.image, outline, **strength_and_size)
        if lesion is not None:
            lesion.parameters["outline"] = path.name
            return lesion
    fault = f"none of the {len(outlines)} outlines it was dealt fits into its brain"
    raise InputError(healthy.case.image, fault, "Give more with --outlines")


def measure(before: np.ndarray, after: np.ndarray, lesion: np.ndarray, healthy: Healthy) -> Row:
    """Return a lesion's contrast, volume and number of 26-connected parts, for the manifest.

    The contrast is its mean change of intensity, in units of the scan's difference from white matter to CSF: positive
    towards CSF.
    """
    change = float((after[lesion] - before[lesion]).mean())
    return {
        "contrast": round(change / (healthy.levels.csf - healthy.levels.white), 4),
        "volume_ml": round(float(lesion.sum()) * healthy.tissues.voxel_ml, 3),
        "lesions": int(ndimage.label(lesion, np.ones((3, 3, 3)))[1]),
    }
