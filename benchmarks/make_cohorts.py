"""Make the evaluation and demo cohorts from prepared scans and real stroke outlines.

    python benchmarks/make_cohorts.py COHORT STROKE_MASKS -o OUT

COHORT is a manifest of what ``brainuad prepare --spacing 2 --bias-levels 1`` wrote for BraTS 2021, MSLUB, ds002748 and
IXI, with the roles of ``benchmarks/roles``, or the folder; STROKE_MASKS a folder of outlines in MNI152 space. Writes
two manifests with their files: ``OUT/scans`` (real patients, healthy scans of both scanners, and one semi-synthetic
stroke in every healthy IXI scan; validation and test) and ``OUT/demo``, which is what the package ships: the test
scans of ``DEMO``. Both list real lesions first and simulated ones last. No outline is used twice, so validation and
test share none."""

from __future__ import annotations

import argparse
import csv
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from brainuad.data.cohort import HEALTHY_SET, Case, read_cases
from brainuad.data.regions import SRI24_TO_MNI
from brainuad.data.volume import Volume
from brainuad.prepare.raw.splits import known_as
from brainuad.simulate.stroke import outline_coverage

STROKE = "stroke (semi-synthetic)"
KINDS = {  # of data sets as prepared
    "Brats21": "BraTS 2021 (real tumour)",
    "MSLUB": "MSLUB (real MS)",
    HEALTHY_SET: "IXI healthy",
    "ds002748": "ds002748 healthy",
}
ORDER = (*KINDS.values(), STROKE)
# In the order of the pictures: the first tumour is plain to see on T1, the second is not. Nobody is there twice.
DEMO = {
    "BraTS 2021 (real tumour)": ("BraTS2021_01484", "BraTS2021_01483"),
    "MSLUB (real MS)": ("patient07", "patient19"),
    "IXI healthy": ("IXI067", "IXI096", "IXI097", "IXI105", "IXI159", "IXI163"),
    "ds002748 healthy": ("sub-52", "sub-53"),
    STROKE: ("IXI202", "IXI216"),
}
MIN_VOLUME_ML = 1.0
MIN_INSIDE = 0.8  # of an outline's volume that must lie in the subject's brain


def main() -> None:
    """Make both cohorts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("strokes", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    cases = [
        replace(case, subject=known_as(case.subject))
        for case in read_cases(arguments.cohort, "t1")
        if case.split in ("val", "test")
    ]
    outlines = sorted(arguments.strokes.glob("*.nii.gz"))
    np.random.default_rng(0).shuffle(outlines)
    scans = arguments.output / "scans"
    rows: list[dict[str, object]] = []
    for case in cases:
        if case.dataset not in KINDS:
            continue
        lesion = Volume.load(case.lesion).array > 0.5 if case.lesion is not None else None
        rows.append(write(case, scans, KINDS[case.dataset], Volume.load(case.image), lesion))
        if case.dataset == HEALTHY_SET:
            rows.append(simulated(case, outlines, scans))
    rows.sort(key=lambda row: ORDER.index(str(row["dataset"])))
    # In the demo each has a name of its own; in the other manifest a subject is a person, so that no scan with a stroke
    # is compared with the same brain without.
    chosen = [
        {**row, "subject": str(row["image"]).removesuffix("_t1.nii.gz")}
        for kind, subjects in DEMO.items()
        for subject in subjects
        for row in rows
        if (row["dataset"], row["subject"], row["split"]) == (kind, subject, "test")
    ]
    demo = arguments.output / "demo"
    demo.mkdir(parents=True, exist_ok=True)
    for row in chosen:
        for name in filter(None, (row["image"], row["mask"], row["seg"])):
            shutil.copyfile(scans / str(name), demo / str(name))
    for folder, table in ((scans, rows), (demo, chosen)):
        with (folder / "manifest.csv").open("w", newline="") as handle:
            writer = csv.DictWriter(handle, list(table[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)
        print(f"{folder}: {len(table)} cases")


def simulated(case: Case, outlines: list[Path], folder: Path) -> dict[str, object]:
    """Put the next outline that fits into a healthy scan; outlines that were taken or do not fit leave the list."""
    image, mask = Volume.load(case.image), Volume.load(case.mask).array > 0.5
    for path in list(outlines):
        outline = Volume.load(path)
        if outline.array.sum() * np.prod(outline.spacing) / 1000 < MIN_VOLUME_ML:
            outlines.remove(path)
            continue
        sick, lesion = stroke(image, mask, outline, seed=int(case.subject[-3:]))
        expected = outline.array.sum() * np.prod(outline.spacing) / np.linalg.det(SRI24_TO_MNI[:3, :3])
        if lesion.sum() * np.prod(image.spacing) >= MIN_INSIDE * expected:
            outlines.remove(path)
            row = write(case, folder, STROKE, image.with_array(sick), lesion)
            return {**row, "outline": path.name}
    raise SystemExit(f"no outline is left for {case.subject}")


@dataclass(frozen=True)
class Tissue:
    """Intensities of cerebrospinal fluid in one scan, in the scan's unit."""

    mean: float
    deviation: float


def csf_of(image: np.ndarray, mask: np.ndarray) -> Tissue:
    """Estimate a T1 scan's CSF from the darkest 0.5 to 2.5 % of the brain deeper than three voxels.

    Args:
        image: ``(X, Y, Z)`` bias-corrected T1 intensities.
        mask: ``(X, Y, Z)`` bool brain mask.

    Raises:
        ValueError: The mask is nowhere that deep.
    """
    inside = ndimage.binary_erosion(mask, iterations=3)
    if not inside.any():
        raise ValueError("the brain mask is too thin to find CSF in it")
    low, high = np.percentile(image[inside], (0.5, 2.5))
    values = image[inside & (image >= low) & (image <= high)]
    return Tissue(float(values.mean()), float(values.std()))


def stroke(image: Volume, mask: np.ndarray, outline: Volume, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Put one real stroke outline into a healthy scan that lies in atlas space.

    Border voxels are mixed by the fraction that the outline covers (partial volume). The filling has the scan's CSF
    intensity, with a smooth texture of the CSF's standard deviation.

    Args:
        image: Prepared healthy T1 scan, in atlas space.
        mask: Brain mask on the grid of ``image``, bool.
        outline: Stroke mask in MNI152 space (above 0.5 is stroke).
        seed: Seed of the texture.

    Returns:
        The image with the stroke, ``(X, Y, Z)`` float32, and the lesion, bool: voxels at least half covered.
    """
    covered = outline_coverage(outline, image) * mask
    csf = csf_of(image.array, mask)
    texture = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(mask.shape), 0.7)
    filling = csf.mean + csf.deviation * texture / texture.std()
    mixed = (1 - covered) * image.array + covered * np.maximum(filling, 0)
    return mixed.astype(np.float32), covered >= 0.5


def write(case: Case, folder: Path, kind: str, image: Volume, lesion: np.ndarray | None) -> dict[str, object]:
    """Write one case as 8-bit images and return its manifest row."""
    name = f"{case.subject}{'_stroke' if kind == STROKE else ''}"
    mask = Volume.load(case.mask)
    # 8 bits from 0 to the 99.8th percentile: the loader clips at the 99th.
    scaled = image.array * (255 / np.percentile(image.array[mask.array > 0.5], 99.8))
    image.with_array(scaled).save(folder / f"{name}_t1.nii.gz", np.uint8)
    mask.save(folder / f"{name}_mask.nii.gz", np.uint8)
    if lesion is not None:
        image.with_array(lesion).save(folder / f"{name}_seg.nii.gz", np.uint8)
    return {
        "subject": case.subject,
        "image": f"{name}_t1.nii.gz",
        "mask": f"{name}_mask.nii.gz",
        "seg": f"{name}_seg.nii.gz" if lesion is not None else "",
        "label": int(lesion is not None),
        "split": case.split,
        "dataset": kind,
        "outline": "",
    }


if __name__ == "__main__":
    main()
