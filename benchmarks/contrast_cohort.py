"""List what a T2 or FLAIR model is trained on where no healthy scan of that contrast can be had.

    brainuad prepare ...                   # IXI on T1, BraTS 2021 on T2 and FLAIR, --bias-levels 1: docs/datasets.md
    brainuad simulate IXI -o SIMULATED --modality flair
    python benchmarks/contrast_cohort.py flair SIMULATED BRATS -o OUT
    brainuad pack OUT/manifest.csv -o flair.npz experiment=lite datamodule.cfg.mode=flair
    brainuad train experiment=lite model=lite-dae data_dir=flair.npz datamodule.cfg.mode=flair \\
      initial_weights=DAE_T1 trainer.precision=bf16-mixed trainer.max_epochs=100000 trainer.max_steps=4500 \\
      trainer.decay_steps=3500 seed=5

The last line made ``lite-flair`` and, with t2 in place of flair, ``lite-t2``, from the weights of the denoising
autoencoder of ``lite-t1`` (the scans of ``lite-flair`` were simulated with other random numbers). OUT/manifest.csv
lists scans simulated from IXI's T1, and what is far from the tumour in the scans of BraTS's validation patients. Those
are no healthy people, and a slice without a tumour need not be healthy.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

from brainuad.data.cohort import MANIFEST_COLUMNS, Case, read_cases
from brainuad.data.volume import Volume
from brainuad.errors import InputError

MARGIN_SLICES = 5  # between a slice that is taken and the nearest one with tumour
LEAST_SLICES = 4  # that a patient is worth taking for
REPEATS = 8  # of each patient, for there are few


def main() -> None:
    """Write the tumour-free slices and the manifest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modality", choices=["t2", "flair"])
    parser.add_argument("simulated", type=Path)
    parser.add_argument("brats", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    try:
        rows = [
            row(case.subject, case.image, case.mask, case.split, f"simulated {arguments.modality.upper()}")
            for case in read_cases(arguments.simulated / "manifest.csv", arguments.modality)
            if case.healthy and case.split != "test"
        ]
        for case in read_cases(arguments.brats / f"manifest_{arguments.modality}.csv", arguments.modality):
            if case.lesion is not None and case.split == "val":
                rows += tumour_free(case, arguments.output)
    except InputError as error:
        raise SystemExit(f"contrast_cohort.py: {error}") from None
    with (arguments.output / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*MANIFEST_COLUMNS, "dataset"])
        writer.writeheader()
        writer.writerows(rows)
    print(f"{len(rows)} rows in {arguments.output / 'manifest.csv'}")


def row(subject: str, image: Path, mask: Path, split: str, dataset: str) -> dict[str, object]:
    """Return a row of the manifest for a scan that counts as healthy."""
    paths = {"image": image.resolve(), "mask": mask.resolve()}
    return {"subject": subject, **paths, "seg": "", "label": 0, "split": split, "dataset": dataset}


def tumour_free(case: Case, output: Path) -> list[dict[str, object]]:
    """Write the brain mask of the slices far from a patient's tumour, and return the rows that take it for healthy."""
    assert case.lesion is not None
    mask, lesion = Volume.load(case.mask), Volume.load(case.lesion)
    ill = np.flatnonzero((lesion.array > 0.5).any((0, 1)))
    places = np.arange(mask.array.shape[2])
    far = np.abs(places[:, None] - ill).min(1) >= MARGIN_SLICES
    brain = (mask.array > 0.5) & far
    slices = int(brain.any((0, 1)).sum())
    print(f"{case.subject}: {slices} of {(mask.array > 0.5).any((0, 1)).sum()} slices")
    if slices < LEAST_SLICES:
        return []
    path = output / f"{case.subject}_mask.nii.gz"
    mask.with_array(brain).save(path, np.uint8)
    return [
        row(f"{case.subject}.{number}", case.image, path, "train", "Brats21 without tumour")
        for number in range(REPEATS)
    ]


if __name__ == "__main__":
    main()
