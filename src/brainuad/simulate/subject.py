"""The simulated scans of one healthy subject, and their rows in the manifest."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from brainuad._version import __version__
from brainuad.data.cohort import Case
from brainuad.data.extract import on_same_grid
from brainuad.data.intensity import on_zero
from brainuad.data.loading import MAX_OFF_CENTRE_MM, off_centre
from brainuad.data.volume import Volume
from brainuad.errors import InputError, remedy_of
from brainuad.files import sha256, write_json
from brainuad.simulate.contrast import CONTRASTS, WHITE, simulated_contrast
from brainuad.simulate.hyperintensities import wmh
from brainuad.simulate.lesion import Lesion, paint
from brainuad.simulate.spots import ms
from brainuad.simulate.stroke import stroke_lesion
from brainuad.simulate.tissue import Levels, Tissues, levels_of
from brainuad.simulate.tumour import tumour

Row = dict[str, Any]
DRAWN = {"ms": ms, "wmh": wmh, "tumour": tumour}
KINDS = ("stroke", *DRAWN)
HEALTHY = "healthy"
_FORMULAS = 2  # raise when the same settings give other lesions


@dataclass(frozen=True)
class Simulation:
    """Settings of a simulated cohort, kept with it.

    Attributes:
        kinds: Kinds of lesions, from ``KINDS``; each subject gets one scan with each.
        modality: "t1"; or "t2" or "flair", for which the healthy scans are simulated from T1 as well.
        seed: Seed of all random numbers, together with the subject and the kind.
        contrast: Factor on the strength of lesions.
        size: Factor on their volume.
    """

    kinds: tuple[str, ...] = KINDS
    modality: str = "t1"
    seed: int = 0
    contrast: float = 1.0
    size: float = 1.0


@dataclass(frozen=True, eq=False)
class Healthy:
    """A healthy subject's scan with the data needed to put lesions into it."""

    case: Case
    image: Volume
    mask: Volume
    tissues: Tissues
    levels: Levels

    def in_contrast(self, modality: str, rng: np.random.Generator) -> tuple[Healthy, Row]:
        """Return the same subject with a simulated scan of another modality, and the drawn values."""
        array, drawn = simulated_contrast(self.image.array, self.tissues, self.levels, modality, rng)
        levels = levels_of(array, self.tissues)
        if (fluid := CONTRASTS[modality].fluid) is not None:  # lesions are painted towards CSF
            levels = replace(levels, csf=fluid * WHITE)
        return replace(self, image=self.image.with_array(array), levels=levels), drawn

    @property
    def brain(self) -> np.ndarray:
        """``(X, Y, Z)`` bool."""
        return self.tissues.brain


def simulate_subject(case: Case, folder: Path, settings: Simulation, outlines: Sequence[Path]) -> tuple[Row, Row]:
    """Write one subject's scans; user errors become a "failed" row.

    Returns:
        The subject's row for the user; and its sidecar with manifest rows and parameters, empty if it failed.
    """
    started = time.perf_counter()
    summary: Row = {"subject": case.subject, "split": case.split, "status": "simulated", "scans": 0}
    try:
        labels = labels_path(case)
        inputs = [[path.name, sha256(path)] for path in (case.image, case.mask, labels, *outlines)]
        recipe = {
            "brainuad": __version__,
            "formulas": _FORMULAS,
            **asdict(settings),
            "split": case.split,
            "inputs": inputs,
        }
        recipe = json.loads(json.dumps(recipe))  # as JSON reads it back: lists for tuples
        sidecar = folder / f"{case.subject}.json"
        record = _simulated_before(folder, sidecar, recipe)
        if record is None:
            healthy = load_healthy(case, labels)
            scans, parameters = _draw_scans(healthy, settings, outlines)
            for scan in scans:
                scan.save(folder)
            record = {"recipe": recipe, "rows": [scan.row for scan in scans], "parameters": parameters}
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
    except (OSError, ValueError, KeyError, TypeError):  # absent or damaged
        return None


def labels_path(case: Case) -> Path:
    """Return the path of a scan's parcellation, in the paper's layout or in a flat folder.

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
        InputError: A file is missing, damaged or on another grid, the image looks standardised, or the labels are not
            MUSE labels.
    """
    image, mask, parcellation = Volume.load(case.image), Volume.load(case.mask), Volume.load(labels)
    try:
        image = image.with_array(on_zero(image.array))
    except ValueError as error:
        raise InputError(case.image, str(error), remedy_of(error, "Prepare it again")) from error
    for path, other in ((case.mask, mask), (labels, parcellation)):
        if not on_same_grid(other, image):
            raise InputError(path, "lies on another grid than its image", f"Resample it onto {case.image}")
    if (off := off_centre(mask.inside, mask.affine)) > MAX_OFF_CENTRE_MM:
        fault = f"lies {off:.0f} mm from the atlas brain, and lesions are placed in atlas space"
        raise InputError(case.image, fault, "Run `brainuad prepare` first")
    try:
        tissues = Tissues.from_labels(parcellation.array, mask.inside, image.spacing)
    except ValueError as error:
        raise InputError(labels, str(error), "Prepare the scans from a MUSE parcellation") from error
    return Healthy(case, image, mask, tissues, levels_of(image.array, tissues))


@dataclass(frozen=True, eq=False)
class _Scan:
    """A simulated scan, not yet written: its row in the manifest, and its volumes by file name."""

    row: Row
    volumes: dict[str, Volume]

    def save(self, folder: Path) -> None:
        for name, volume in self.volumes.items():
            volume.save(folder / name, np.uint8)


def stems(subject: str, kinds: Sequence[str]) -> list[str]:
    """Return the prefixes of a subject's file names: of the healthy scan, then of the scan with each kind of lesion."""
    return [subject, *(f"{subject}_{kind}" for kind in kinds)]


def _draw_scans(healthy: Healthy, settings: Simulation, outlines: Sequence[Path]) -> tuple[list[_Scan], Row]:
    """Return the healthy scan and one with each kind of lesion, and their parameters."""
    case, modality = healthy.case, settings.modality
    drawn: Row = {}
    if modality in CONTRASTS:
        healthy, drawn = healthy.in_contrast(modality, _generator(settings, case, modality))
    image = healthy.image
    # Lesions of a FLAIR are brighter than any healthy tissue.
    scale = 255 / max(float(np.percentile(image.array[healthy.brain], 99.8)), healthy.levels.csf)
    mask = f"{case.subject}_mask.nii.gz"
    datasets = (
        ("simulated {}", f"{case.dataset} healthy")
        if modality == "t1"
        else (f"simulated {{}} in simulated {modality.upper()}", f"simulated healthy {modality.upper()}")
    )

    def scan(kind: str, array: np.ndarray, truth: np.ndarray | None, measured: Row) -> _Scan:
        stem = case.subject if kind == HEALTHY else f"{case.subject}_{kind}"
        volumes = {f"{stem}_{modality}.nii.gz": image.with_array(array * scale)}
        if truth is None:
            volumes[mask] = healthy.mask
        else:
            volumes[f"{stem}_seg.nii.gz"] = image.with_array(truth)
        row = {
            "subject": case.subject,
            "image": f"{stem}_{modality}.nii.gz",
            "mask": mask,
            "seg": "" if truth is None else f"{stem}_seg.nii.gz",
            "label": int(truth is not None),
            "split": case.split,
            "dataset": datasets[kind == HEALTHY].format(kind),
            "age": "" if case.age is None else case.age,
            "kind": kind,
            **measured,
        }
        return _Scan(row, volumes)

    nothing: Row = {"contrast": "", "volume_ml": 0.0, "lesions": 0}
    scans = [scan(HEALTHY, image.array, None, nothing)]
    parameters: Row = {HEALTHY: {"levels": asdict(healthy.levels), "file_units": scale, **drawn}}
    for kind in settings.kinds if case.split != "train" else ():
        rng = _generator(settings, case, kind)
        lesion = _draw(kind, healthy, settings, outlines, rng)
        sick = paint(image.array, lesion, healthy.levels, healthy.brain, rng)
        truth = lesion.truth()
        if not truth.any():
            fault = f"no voxel is half covered by a simulated lesion of kind {kind}"
            raise InputError(case.image, fault, "Raise --size, or use a finer grid")
        measured = measure(image.array, sick, truth > 0, healthy)
        scans.append(scan(kind, sick, truth, measured))
        parameters[kind] = lesion.parameters
    return scans, parameters


def _generator(settings: Simulation, case: Case, what: str) -> np.random.Generator:
    """Return the generator of a subject's scan, which does not depend on other subjects and kinds."""
    return np.random.default_rng([settings.seed, zlib.crc32(case.subject.encode()), zlib.crc32(what.encode())])


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

    The contrast is the lesion's mean change of intensity, in units of the scan's difference between white matter and
    CSF, positive towards CSF (on FLAIR, towards the fluid of a lesion).
    """
    change = float((after[lesion] - before[lesion]).mean())
    return {
        "contrast": round(change / (healthy.levels.csf - healthy.levels.white), 4),
        "volume_ml": round(float(lesion.sum()) * healthy.tissues.voxel_ml, 3),
        "lesions": int(ndimage.label(lesion, np.ones((3, 3, 3)))[1]),
    }
