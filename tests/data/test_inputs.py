"""Files and folders become a list of scans with names; only NIfTI here."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from brainuad.data.inputs import Scan, find_scans, left_out, open_scan, output_paths
from brainuad.data.volume import Volume

FILES = Path(__file__).parent.parent / "files"
SCAN = FILES / "ixi013_t1_4mm.nii.gz"


def put(folder: Path, *names: str) -> None:
    """Copy one real scan to several places below a folder."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(SCAN, folder / name)


def names_of(*inputs: Path, output: Path | str = "/nowhere/out", modality: str = "t1") -> list[str]:
    return [scan.name for scan in find_scans(inputs, modality=modality, output=output)]


def test_a_file_that_is_named_is_taken_and_read(tmp_path):
    put(tmp_path, "patient_t1_mask.nii.gz")
    (scan,) = find_scans([str(tmp_path / "patient_t1_mask.nii.gz")], modality="t1", output=tmp_path / "out")
    assert scan == Scan("patient_t1_mask", tmp_path / "patient_t1_mask.nii.gz", "nifti", "", "")
    np.testing.assert_array_equal(open_scan(scan).array, Volume.load(SCAN).array)
    assert output_paths(scan) == {
        "anomaly": "patient_t1_mask_anomaly.nii.gz",
        "lesions": "patient_t1_mask_lesions.nii.gz",
        "reconstruction": "patient_t1_mask_reconstruction.nii.gz",
        "brain": "patient_t1_mask_brain.nii.gz",
        "sidecar": "patient_t1_mask.json",
        "montage": "patient_t1_mask.png",
    }


def test_folders_are_searched_without_masks_results_hidden_files_and_other_contrasts(tmp_path):
    put(tmp_path, "b/two_T1w.nii", "a/one_t1.nii.gz", "a/one_t1_mask.nii.gz", "a/one_t1_brain.nii.gz")
    put(tmp_path, "a/one_t1_anomaly.nii.gz", "a/one_seg.nii.gz", "b/two_FLAIR.nii.gz", "b/two_T2w.nii.gz")
    put(tmp_path, "b/._two_T1w.nii.gz", ".trash/three.nii.gz", "c/IXI013-HH-1212-T1.nii.gz", "c/plain.nii.gz")
    put(tmp_path, "d/extracted_brain.nii.gz", "d/UPPER.NII.GZ", "d/patient_t1ce.nii.gz")
    assert names_of(tmp_path) == [
        "one_t1",
        "two_T1w",
        "IXI013-HH-1212-T1",
        "plain",
        "UPPER",
        "extracted_brain",
    ]
    assert names_of(tmp_path, modality="t2") == ["two_T2w", "plain", "UPPER", "extracted_brain"]


@pytest.mark.parametrize(
    ("name", "modality", "taken"),
    [
        ("BraTS2021_00001_flair.nii.gz", "t2", False),
        ("T2_FLAIR.nii.gz", "t2", False),
        ("t1_registered_to_t2.nii.gz", "t1", True),
        ("patient07_T2W.nii.gz", "t1", False),
        ("sub-01_T1w.nii.gz", "t1", True),
        ("sub-01_desc-reconstruction_T1w.nii.gz", "t1", False),
        ("sub-01_desc-lesions_dseg.nii.gz", "t1", False),
        ("tsetse_fly.nii.gz", "t1", True),
        ("segmented.nii.gz", "t1", True),
    ],
)
def test_what_a_name_says(name, modality, taken):
    assert (left_out(name, [name], modality) == "") is taken
