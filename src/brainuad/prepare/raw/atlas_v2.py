"""ATLAS v2: T1 scans after stroke with manual lesion outlines (Liew et al. 2022)."""

from __future__ import annotations

import re
from pathlib import Path

from brainuad.prepare.raw.archives import nifti_files
from brainuad.prepare.raw.patients import patients
from brainuad.prepare.raw.scan import RawScan

_LESION = re.compile(r"((sub-[^_]+)_ses-([^_]+).*?)_label-(?:L|lesion)_desc-T1lesion_mask(\.nii(?:\.gz)?)")


def atlas_v2(root: Path, modality: str) -> list[RawScan]:
    """BIDS tree or tar with sub-*/ses-*/anat/*_T1w.nii.gz and *_label-L_desc-T1lesion_mask.nii.gz (T1 only).

    Scans without a lesion mask, which are the hidden test set, are left out. Of a scan in native and in MNI space, the
    native one is taken.
    """
    if modality != "t1":
        return []
    present = set(nifti_files(root))
    found: dict[str, dict[str, Path]] = {}
    for lesion in sorted(present, key=lambda path: ("space-MNI" in path.name, path)):
        if not (match := _LESION.fullmatch(lesion.name)):
            continue
        stem, subject, session, ending = match.groups()
        name = subject if session == "1" else f"{subject}_ses-{session}"
        images = [lesion.with_name(f"{stem}{kind}_T1w{ending}") for kind in ("", "_desc-brain")]
        image = next((path for path in images if path in present), None)
        if "t1" not in found.setdefault(name, {}):
            found[name] = {"lesion": lesion} | ({"t1": image} if image else {})
    return patients(
        "ATLAS_v2", modality, sorted(found.items()), needed=("t1",), without="a T1 scan beside the lesion mask",
        person=lambda name: name.partition("_ses-")[0],
    )  # fmt: skip
