"""ATLAS v2: T1 scans after stroke with manual lesion outlines (Liew et al. 2022)."""

from __future__ import annotations

import re
from pathlib import Path

from brainuad.prepare.raw.archives import nifti_files
from brainuad.prepare.raw.scan import RawScan, warn_left_out
from brainuad.prepare.raw.splits import patient_split

_LESION = re.compile(r"((sub-[^_]+)_ses-([^_]+).*?)_label-(?:L|lesion)_desc-T1lesion_mask(\.nii(?:\.gz)?)")


def atlas_v2(root: Path, modality: str) -> list[RawScan]:
    """BIDS tree or tar with sub-*/ses-*/anat/*_T1w.nii.gz and *_label-L_desc-T1lesion_mask.nii.gz (T1 only).

    Scans without a lesion mask, which are the hidden test set, are left out. Of a scan in native and in MNI space, the
    native one is taken.
    """
    found = set(nifti_files(root))
    scans: dict[str, RawScan] = {}
    lonely: set[str] = set()
    for lesion in sorted(found, key=lambda path: ("space-MNI" in path.name, path)):
        match = _LESION.fullmatch(lesion.name)
        if modality != "t1" or not match:
            continue
        stem, subject, session, ending = match.groups()
        names = (f"{stem}_T1w{ending}", f"{stem}_desc-brain_T1w{ending}")
        image = next((path for name in names if (path := lesion.with_name(name)) in found), None)
        name = subject if session == "1" else f"{subject}_ses-{session}"
        if image is None:
            lonely.add(name)
        elif name not in scans:
            scans[name] = RawScan(
                name, "ATLAS_v2", {"t1": image}, lesion=lesion, split=patient_split("ATLAS_v2", subject)
            )
    warn_left_out(lonely - set(scans), "without a T1 scan beside the lesion mask")
    return [scans[name] for name in sorted(scans)]
