"""BraTS 2021: gliomas, registered to SRI24 and brain-extracted by the organisers."""

from __future__ import annotations

import re
from pathlib import Path

from brainuad.prepare.raw.archives import nifti_files
from brainuad.prepare.raw.patients import patients
from brainuad.prepare.raw.scan import RawScan

_NAME = re.compile(r"(BraTS2021_\d+)_(t1|t2|flair|seg)\.nii(\.gz)?")


def brats21(root: Path, modality: str) -> list[RawScan]:
    """Folder or tar of BraTS2021_00000/BraTS2021_00000_{t1,t2,flair,seg}.nii.gz; every label above 0 is lesion.

    Patients without lesion labels, which are the published validation set, are left out.
    """
    files: dict[str, dict[str, Path]] = {}
    for path in nifti_files(root):
        if match := _NAME.fullmatch(path.name):
            files.setdefault(match[1], {})["lesion" if match[2] == "seg" else match[2]] = path
    found = [(subject, own) for subject, own in sorted(files.items()) if modality in own]
    return patients("Brats21", modality, found, needed=(), without="lesion labels")
