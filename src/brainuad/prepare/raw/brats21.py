"""BraTS 2021: gliomas, registered to SRI24 and brain-extracted by the organisers."""

from __future__ import annotations

import re
from pathlib import Path

from brainuad.data.cohort import MODALITIES
from brainuad.prepare.raw.archives import nifti_files
from brainuad.prepare.raw.scan import RawScan, warn_left_out
from brainuad.prepare.raw.splits import patient_split

_NAME = re.compile(r"(BraTS2021_\d+)_(t1|t2|flair|seg)\.nii(\.gz)?")


def brats21(root: Path, modality: str) -> list[RawScan]:
    """Folder or tar of BraTS2021_00000/BraTS2021_00000_{t1,t2,flair,seg}.nii.gz; every label above 0 is lesion.

    Patients without lesion labels, which are the published validation set, are left out.
    """
    patients: dict[str, dict[str, Path]] = {}
    for path in nifti_files(root):
        if match := _NAME.fullmatch(path.name):
            patients.setdefault(match[1], {})[match[2]] = path
    unlabelled = {name for name, files in patients.items() if modality in files and "seg" not in files}
    warn_left_out(unlabelled, "without lesion labels")
    return [
        RawScan(
            subject, "Brats21", {m: files[m] for m in MODALITIES if m in files}, lesion=files["seg"],
            split=patient_split("Brats21", subject), modality=modality,
        )
        for subject, files in sorted(patients.items())
        if {modality, "seg"} <= set(files)
    ]  # fmt: skip
