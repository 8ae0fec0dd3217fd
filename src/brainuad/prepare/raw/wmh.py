"""WMH challenge 2017: white matter hyperintensities of presumed vascular origin, five scanners (Kuijf et al. 2019)."""

from __future__ import annotations

import re
from pathlib import Path

from brainuad.prepare.raw.archives import nifti_files
from brainuad.prepare.raw.patients import patients
from brainuad.prepare.raw.scan import RawScan

_NAMES = {"t1": "T1", "flair": "FLAIR"}
_LESION = 1  # 2 is other pathology, which does not count as lesion here


def wmh(root: Path, modality: str) -> list[RawScan]:
    """Folders SITE/[SCANNER/]NUMBER/ with orig/T1.nii.gz and orig/FLAIR.nii.gz (or those in pre) and wmh.nii.gz.

    These T1 scans lie on the grid of the FLAIR, where the lesions were outlined.
    """
    if modality not in _NAMES:
        return []
    present = set(nifti_files(root))
    found = []
    for lesion in sorted(present):
        if not re.fullmatch(r"wmh\.nii(\.gz)?", lesion.name):
            continue
        folder, ending = lesion.parent, lesion.name[3:]
        files = {
            kind: path
            for kind, name in _NAMES.items()
            for part in ("pre", "orig")  # the last is taken
            if (path := folder / part / f"{name}{ending}") in present
        }
        # the site or scanner; one is published as "Philips_VU .PETMR_01."
        site = re.sub(r"\W+", "_", folder.parent.name).strip("_")
        found.append((f"{site}_{folder.name}", {**files, "lesion": lesion}))
    without = f"{_NAMES[modality]} in orig and pre"
    return patients("WMH", modality, found, needed=(modality,), without=without, lesion_label=_LESION)
