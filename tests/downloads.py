"""Small trees of real scans, laid out as the data sets are downloaded. All hold scans of 4 mm from ``files``."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import nibabel as nib
import numpy as np

FILES = Path(__file__).parent / "files"
HEAD, PARCELLATION = FILES / "ixi013_t1_4mm.nii.gz", FILES / "ixi013_labels_4mm.nii.gz"
BRAIN, MASK, LESIONS = (FILES / f"mslub19_{kind}_4mm.nii.gz" for kind in ("t1", "mask", "seg"))


def put(source: Path, *targets: Path) -> None:
    for target in targets:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def labels(source: Path, target: Path, values: dict[int, int], dtype: type = np.uint8) -> None:
    """Write a label image whose labels are those of ``source``, renamed by ``values``; others are 0."""
    image = nib.load(source)
    found = np.asarray(image.dataobj)
    renamed = np.zeros(found.shape, dtype)
    for old, new in values.items():
        renamed[found == old] = new
    target.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(renamed, image.affine), target)


def ixi(root: Path, *, scans: tuple[str, ...] = ("IXI013-HH-1212", "IXI002-Guys-0828")) -> Path:
    """IXI-T1.tar, its members below "./" as in the published archive, and the first one's T2 in a tar of its own."""
    root.mkdir()
    members = {"IXI-T1.tar": [f"{scan}-T1.nii.gz" for scan in scans], "IXI-T2.tar": [f"{scans[0]}-T2.nii.gz"]}
    for archive, names in members.items():
        with tarfile.open(root / archive, "w") as tar:
            for name in names:
                tar.add(HEAD, f"./{name}")
    (root / "IXI.csv").write_text(
        'IXI_ID,"SEX_ID (1=m, 2=f)",AGE,STUDY_DATE\n2,2,35.8,2005-11-18\n13,1,46.71,2005-12-02\n99,1,,\n'
    )
    return root


def brats21(root: Path) -> Path:
    """Two patients with the four contrasts and labels 1, 2 and 4; one of the validation set, which has no labels."""
    for number in ("00000", "00002", "00777"):
        stem = root / f"BraTS2021_{number}" / f"BraTS2021_{number}"
        put(BRAIN, *(stem.with_name(f"{stem.name}_{kind}.nii.gz") for kind in ("t1", "t1ce", "t2", "flair")))
        if number != "00777":
            labels(LESIONS, stem.with_name(f"{stem.name}_seg.nii.gz"), {1: 4})
    return root


def mslub(root: Path) -> Path:
    """One patient of the download; one of its copy on the web, which leaves "patient08_" out of the names."""
    first, second = root / "patient01-05/patient01", root / "cross_sectional/coregistered/patient08"
    for folder, prefix in ((first, "patient01_"), (second, "")):
        put(BRAIN, *(folder / f"{prefix}{kind}.nii.gz" for kind in ("T1W", "T1WKS", "T2W", "FLAIR")))
        put(MASK, folder / f"{prefix}brainmask.nii.gz")
        put(LESIONS, folder / f"{prefix}consensus_gt.nii.gz")
    put(HEAD, first / "raw/patient01_T1W.nii.gz", first / "raw/patient01_T2W.nii.gz")
    raw = root / "cross_sectional/raw/patient08"
    put(HEAD, raw / "T1W.nii.gz")
    put(LESIONS, raw / "consensus_gt.nii.gz")
    return root


def atlas_v2(root: Path) -> Path:
    """A scan with a lesion mask in MNI space, one in both spaces, and one of the hidden test set."""
    space = "space-MNI152NLin2009aSym"
    scans = {
        "Training/R001/sub-r001s001": (f"_{space}",),
        "Training/R009/sub-r009s042": ("", f"_{space}"),
        "Testing/R002/sub-r002s003": (),
    }
    for path, labelled in scans.items():
        stem = root / path / "ses-1/anat" / f"{Path(path).name}_ses-1"
        for middle in labelled or (f"_{space}",):
            put(HEAD, stem.with_name(f"{stem.name}{middle}_T1w.nii.gz"))
        for middle in labelled:
            lesion = stem.with_name(f"{stem.name}{middle}_label-L_desc-T1lesion_mask.nii.gz")
            labels(PARCELLATION, lesion, {81: 1})
    return root


def wmh(root: Path) -> Path:
    """Two sites, one with a scanner of a difficult name; label 2 is other pathology; one subject without a T1."""
    for path in ("training/Utrecht/0", "test/Amsterdam/Philips_VU .PETMR_01./161"):
        for part in ("orig", "pre"):
            put(HEAD, *(root / path / part / f"{kind}.nii.gz" for kind in ("T1", "FLAIR", "3DT1")))
        labels(PARCELLATION, root / path / "wmh.nii.gz", {81: 1, 82: 2}, np.float32)
    labels(PARCELLATION, root / "training/Singapore/50/wmh.nii.gz", {81: 1})
    return root
