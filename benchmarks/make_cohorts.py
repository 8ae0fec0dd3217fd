"""Make the evaluation and demo cohorts from prepared scans and real stroke outlines.

    python benchmarks/make_cohorts.py DATA_DIR STROKE_MASKS -o OUT

DATA_DIR is what ``brainuad prepare --spacing 2`` wrote for IXI and MSLUB; STROKE_MASKS a folder of outlines in
MNI152 space. Writes two manifests with their files: ``OUT/scans`` (every healthy IXI validation and test scan, one
semi-synthetic stroke in each, and the real MSLUB patients) and ``OUT/demo`` (of the test scans 6 healthy ones, 6
semi-synthetic strokes in others, and the MSLUB patients), which is what the package ships. No outline is used twice,
so validation and test share none.
"""

from __future__ import annotations

import argparse
import csv
import shutil
from pathlib import Path

import numpy as np

from brainuad.data.cohort import Case, paper_cases
from brainuad.data.simulate import stroke
from brainuad.data.volume import Volume

HEALTHY, STROKE, REAL = "IXI healthy", "stroke (semi-synthetic)", "MSLUB (real MS)"
KINDS = (HEALTHY, STROKE, REAL)
DEMO_SUBJECTS = 6
MIN_VOLUME_ML = 1.0
MIN_INSIDE = 0.8  # of an outline's volume that must lie in the subject's brain


def main() -> None:
    """Make both cohorts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("strokes", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    cases = paper_cases(arguments.data_dir, modality="t1", training=True)
    outlines = sorted(arguments.strokes.glob("*.nii.gz"))
    np.random.default_rng(0).shuffle(outlines)
    scans = arguments.output / "scans"
    rows: list[dict[str, object]] = []
    for case in cases:
        if case.dataset == "IXI" and case.split in ("val", "test"):
            rows.append(write(case, scans, HEALTHY, Volume.load(case.image), None))
            rows.append(simulated(case, outlines, scans))
        elif case.dataset == "MSLUB" and case.lesion is not None:
            lesion = Volume.load(case.lesion).array > 0.5
            rows.append(write(case, scans, REAL, Volume.load(case.image), lesion))
    test = {kind: [row for row in rows if (row["dataset"], row["split"]) == (kind, "test")] for kind in KINDS}
    # Healthy and lesioned scans of the demo are of different subjects.
    chosen = test[HEALTHY][:DEMO_SUBJECTS] + test[STROKE][DEMO_SUBJECTS : 2 * DEMO_SUBJECTS] + test[REAL]
    # There each has a name of its own; in the other manifest a subject is a person, so that no scan with a stroke is
    # compared with the same brain without.
    chosen = [{**row, "subject": str(row["image"]).removesuffix("_t1.nii.gz")} for row in chosen]
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
        expected = (
            outline.array.sum() * np.prod(outline.spacing) / 0.75
        )  # MNI is smaller than the atlas by about this
        if lesion.sum() * np.prod(image.spacing) >= MIN_INSIDE * expected:
            outlines.remove(path)
            row = write(case, folder, STROKE, image.with_array(sick), lesion)
            return {**row, "outline": path.name}
    raise SystemExit(f"no outline is left for {case.subject}")


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
        "split": "val" if case.split == "val" else "test",
        "dataset": kind,
        "outline": "",
    }


if __name__ == "__main__":
    main()
