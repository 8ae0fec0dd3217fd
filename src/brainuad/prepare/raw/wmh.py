"""WMH challenge 2017: white matter hyperintensities of presumed vascular origin, five scanners (Kuijf et al. 2019)."""

from __future__ import annotations

import re
from pathlib import Path

from brainuad.prepare.raw.archives import nifti_files
from brainuad.prepare.raw.scan import RawScan, warn_left_out
from brainuad.prepare.raw.splits import patient_split

_NAMES = {"t1": "T1", "flair": "FLAIR"}
_LESION = 1  # 2 is other pathology, which does not count as lesion here


def wmh(root: Path, modality: str) -> list[RawScan]:
    """Folders SITE/[SCANNER/]NUMBER/ with orig/T1.nii.gz and orig/FLAIR.nii.gz (or those in pre) and wmh.nii.gz.

    These T1 scans lie on the grid of the FLAIR, where the lesions were outlined.
    """
    found = set(nifti_files(root))
    scans = []
    lonely = []
    for lesion in sorted(found):
        if modality not in _NAMES or not re.fullmatch(r"wmh\.nii(\.gz)?", lesion.name):
            continue
        folder, ending = lesion.parent, lesion.name[3:]
        images = {
            kind: path
            for kind, name in _NAMES.items()
            for part in ("pre", "orig")  # the last is taken
            if (path := folder / part / f"{name}{ending}") in found
        }
        # the site or scanner; one is published as "Philips_VU .PETMR_01."
        site = re.sub(r"\W+", "_", folder.parent.name).strip("_")
        subject = f"{site}_{folder.name}"
        if modality not in images:
            lonely.append(subject)
        else:
            scans.append(
                RawScan(
                    subject, "WMH", images, lesion=lesion, split=patient_split("WMH", subject),
                    modality=modality, lesion_label=_LESION,
                )
            )  # fmt: skip
    warn_left_out(lonely, f"without {_NAMES.get(modality, modality)} in orig and pre")
    return scans
