"""WMH challenge 2017: white matter hyperintensities of presumed vascular origin, five scanners (Kuijf et al. 2019)."""

from __future__ import annotations

import re
from pathlib import Path

from brainuad.prepare.raw.archives import nifti_files
from brainuad.prepare.raw.scan import RawScan, warn_left_out
from brainuad.prepare.raw.splits import patient_split

_LESION = 1  # 2 is other pathology, which does not count as lesion here


def wmh(root: Path, modality: str) -> list[RawScan]:
    """Folders SITE/[SCANNER/]NUMBER/ with orig/T1.nii.gz (or pre/T1.nii.gz) and wmh.nii.gz (T1 only).

    These T1 scans lie on the grid of the FLAIR, where the lesions were outlined.
    """
    found = set(nifti_files(root))
    scans = []
    lonely = []
    for lesion in sorted(found):
        if modality != "t1" or not re.fullmatch(r"wmh\.nii(\.gz)?", lesion.name):
            continue
        folder, ending = lesion.parent, lesion.name[3:]
        images = (folder / part / f"T1{ending}" for part in ("orig", "pre"))
        image = next((path for path in images if path in found), None)
        # the site or scanner; one is published as "Philips_VU .PETMR_01."
        site = re.sub(r"\W+", "_", folder.parent.name).strip("_")
        subject = f"{site}_{folder.name}"
        if image is None:
            lonely.append(subject)
        else:
            scans.append(
                RawScan(
                    subject, "WMH", {"t1": image}, lesion=lesion, split=patient_split("WMH", subject),
                    lesion_label=_LESION,
                )
            )  # fmt: skip
    warn_left_out(lonely, "without orig/T1 and pre/T1")
    return scans
