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
from brainuad.errors import InputError, blame
from brainuad.files import finished_record, sha256, write_json
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
    """Settings of a simulated cohort, kept with it."""

    kinds: tuple[str, ...] = KINDS  # kinds of lesions, from KINDS; each subject gets one scan with each
    modality: str = "t1"  # "t1"; or "t2" or "flair", for which the healthy scans are simulated from T1 as well
    seed: int = 0  # seed of all random numbers, together with the subject and the kind
    contrast: float = 1.0  # factor on the strength of lesions
    size: float = 1.0  # factor on their volume


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
        about = {"brainuad": __version__, "formulas": _FORMULAS, **asdict(settings)}
        recipe = json.loads(json.dumps({**about, "split": case.split, "inputs": inputs}))  # lists for tuples
        sidecar = folder / f"{case.subject}.json"
        record = finished_record(
            sidecar,
            recipe,
            lambda known: [
                folder / row[kind] for row in known["rows"] for kind in ("image", "mask", "seg") if row[kind]
            ],
        )
        if record is None:
            rows, parameters = _write_scans(folder, load_healthy(case, labels), settings, outlines)
            record = {"recipe": recipe, "rows": rows, "parameters": parameters}
            write_json(sidecar, record)
        else:
            summary["status"] = "skipped"
        summary["scans"], message = len(record["rows"]), ""
    except (InputError, ValueError) as error:
        summary["status"], record = "failed", {}
        message = str(error) if isinstance(error, InputError) else f"{case.image}: {error}"
    return {**summary, "seconds": round(time.perf_counter() - started, 2), "message": message}, record


def labels_path(case: Case) -> Path:
    """Return the path of a scan's parcellation, which must exist, in the paper's layout or in a flat folder."""
    image = case.image
    name = image.name.replace("_t1.nii", "_labels.nii")
    places = (image.parent.parent / "labels" / name, image.parent / name)
    for path in places:
        if name != image.name and path.is_file():
            return path
    remedy = "`brainuad prepare` writes it where the brain mask it is given is a MUSE parcellation"
    raise InputError(image, f"has no parcellation {places[0]}", remedy)


def load_healthy(case: Case, labels: Path) -> Healthy:
    """Read a healthy scan with its mask and MUSE parcellation; what is not fit for use is an `InputError`."""
    image, mask, parcellation = Volume.load(case.image), Volume.load(case.mask), Volume.load(labels)
    with blame(case.image, "Prepare it again"):
        image = image.with_array(on_zero(image.array))
    for path, other in ((case.mask, mask), (labels, parcellation)):
        if not on_same_grid(other, image):
            raise InputError(path, "lies on another grid than its image", f"Resample it onto {case.image}")
    if (off := off_centre(mask.inside, mask.affine)) > MAX_OFF_CENTRE_MM:
        fault = f"lies {off:.0f} mm from the atlas brain, and lesions are placed in atlas space"
        raise InputError(case.image, fault, "Run `brainuad prepare` first")
    with blame(labels, "Prepare the scans from a MUSE parcellation"):
        tissues = Tissues.from_labels(parcellation.array, mask.inside, image.spacing)
    return Healthy(case, image, mask, tissues, levels_of(image.array, tissues))


def _write_scans(
    folder: Path, healthy: Healthy, settings: Simulation, outlines: Sequence[Path]
) -> tuple[list[Row], Row]:
    """Write the healthy scan and one with each kind of lesion; return their rows in the manifest and parameters."""
    case, modality = healthy.case, settings.modality
    drawn: Row = {}
    if modality in CONTRASTS:
        healthy, drawn = healthy.in_contrast(modality, _generator(settings, case, modality))
    image = healthy.image
    # Lesions of a FLAIR are brighter than any healthy tissue.
    scale = 255 / max(float(np.percentile(image.array[healthy.tissues.brain], 99.8)), healthy.levels.csf)
    mask = f"{case.subject}_mask.nii.gz"
    volumes = {mask: healthy.mask}

    def add(kind: str, array: np.ndarray, truth: np.ndarray | None, measured: Row) -> Row:
        stem = case.subject if kind == HEALTHY else f"{case.subject}_{kind}"
        dataset = f"simulated {kind}" + (f" in simulated {modality.upper()}" if modality != "t1" else "")
        if kind == HEALTHY:
            dataset = f"{case.dataset} healthy" if modality == "t1" else f"simulated healthy {modality.upper()}"
        volumes[f"{stem}_{modality}.nii.gz"] = image.with_array(array * scale)
        if truth is not None:
            volumes[f"{stem}_seg.nii.gz"] = image.with_array(truth)
        return {
            "subject": case.subject,
            "image": f"{stem}_{modality}.nii.gz",
            "mask": mask,
            "seg": "" if truth is None else f"{stem}_seg.nii.gz",
            "label": int(truth is not None),
            "split": case.split,
            "dataset": dataset,
            "age": "" if case.age is None else case.age,
            "kind": kind,
            **measured,
        }

    rows = [add(HEALTHY, image.array, None, {"contrast": "", "volume_ml": 0.0, "lesions": 0})]
    parameters: Row = {HEALTHY: {"levels": asdict(healthy.levels), "file_units": scale, **drawn}}
    for kind in settings.kinds if case.split != "train" else ():
        rng = _generator(settings, case, kind)
        lesion = _draw(kind, healthy, settings, outlines, rng)
        sick = paint(image.array, lesion, healthy.levels, healthy.tissues.brain, rng)
        truth = lesion.truth()
        if not truth.any():
            fault = f"no voxel is half covered by a simulated lesion of kind {kind}"
            raise InputError(case.image, fault, "Raise --size, or use a finer grid")
        rows.append(add(kind, sick, truth, measure(image.array, sick, truth > 0, healthy)))
        parameters[kind] = lesion.parameters
    for name, volume in volumes.items():
        volume.save(folder / name, np.uint8)
    return rows, parameters


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
