"""MSLUB: multiple sclerosis, consensus lesion outlines of three raters (Lesjak et al. 2018)."""

from __future__ import annotations

import re
from pathlib import Path

from brainuad.data.cohort import MODALITIES
from brainuad.errors import InputError
from brainuad.prepare.raw.archives import nifti_files
from brainuad.prepare.raw.patients import patients
from brainuad.prepare.raw.scan import RawScan

_KINDS = {"T1W": "t1", "T2W": "t2", "FLAIR": "flair", "brainmask": "mask", "consensus_gt": "lesion"}


def mslub(root: Path, modality: str) -> list[RawScan]:
    """Folders patient01/ with T1W, T2W, FLAIR, brainmask, consensus_gt; or patient01_{t1,t2,flair,seg}.nii.gz.

    The latter have no skull.
    """
    flat = sorted(root.glob(f"patient*_{modality}.nii.gz"))
    return [_flat(path, modality) for path in flat] if flat else _downloaded(root, modality)


def _flat(path: Path, modality: str) -> RawScan:
    """Return a patient whose image has no skull; these are test subjects."""
    subject = path.name.split("_")[0]
    images = {m: p for m in MODALITIES if (p := path.with_name(f"{subject}_{m}.nii.gz")).exists()}
    lesion = path.with_name(f"{subject}_seg.nii.gz")
    if not lesion.exists():
        raise InputError(lesion, "the lesion mask of this patient is missing", "Copy it beside the image")
    return RawScan(subject, "MSLUB", images, lesion=lesion, splits=("test",), modality=modality)


def _downloaded(root: Path, modality: str) -> list[RawScan]:
    """Return the patients of the download, or of its copy, whose file names lack "patient01_".

    Images, brain mask and lesions lie on the grid of the FLAIR in the patient's own folder (``coregistered/patient01``
    in the copy). The ``raw`` images beside it lie on other grids and have no brain mask.
    """
    folders: dict[Path, dict[str, Path]] = {}
    for path in nifti_files(root):
        kind = re.sub(r"^patient\d+_|\.nii(\.gz)?$", "", path.name)
        if kind in _KINDS and re.fullmatch(r"patient\d+", path.parent.name):
            folders.setdefault(path.parent, {})[_KINDS[kind]] = path
    found = sorted(((folder.name, files) for folder, files in folders.items()), key=lambda item: item[0])
    without = f"{modality}, brain mask or lesions on one grid"
    return patients("MSLUB", modality, found, needed=("mask", modality), without=without)
