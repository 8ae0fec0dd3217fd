"""Files and folders become a list of scans with names."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from dicom_series import write_series

from brainuad.data.volume import Volume
from brainuad.errors import InputError
from brainuad.inputs.scans import Scan, find_scans, left_out, open_scan, output_paths, safe_name

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


def test_sources_are_absolute(tmp_path, monkeypatch):
    put(tmp_path, "scans/a.nii.gz")
    monkeypatch.chdir(tmp_path / "scans")
    for given in ("a.nii.gz", ".", "../scans"):
        (scan,) = find_scans([given], modality="t1", output="../out")
        assert scan.source == tmp_path / "scans" / "a.nii.gz"


def test_folders_are_searched_without_masks_results_hidden_files_and_other_contrasts(tmp_path):
    put(tmp_path, "b/two_T1w.nii", "a/one_t1.nii.gz", "a/one_t1_mask.nii.gz", "a/one_t1_brain.nii.gz")
    put(tmp_path, "a/one_t1_anomaly.nii.gz", "a/one_seg.nii.gz", "b/two_FLAIR.nii.gz", "b/two_T2w.nii.gz")
    put(tmp_path, "b/._two_T1w.nii.gz", ".trash/three.nii.gz", "c/IXI013-HH-1212-T1.nii.gz", "c/plain.nii.gz")
    put(tmp_path, "d/extracted_brain.nii.gz", "d/UPPER.NII.GZ", "d/patient_t1ce.nii.gz")
    assert names_of(tmp_path) == ["one_t1", "two_T1w", "IXI013-HH-1212-T1", "plain", "UPPER", "extracted_brain"]
    assert names_of(tmp_path, modality="t2") == ["two_T2w", "plain", "UPPER", "extracted_brain"]


@pytest.mark.parametrize(
    ("name", "modality", "taken"),
    [
        ("BraTS2021_00001_flair.nii.gz", "t2", False),
        ("T2_FLAIR.nii.gz", "t2", False),
        ("T2_FLAIR.nii.gz", "flair", True),
        ("t2_space_dark-fluid.nii.gz", "flair", True),
        ("t2_tirm_tra_dark-fluid.nii.gz", "t2", False),
        ("T1_FLAIR.nii.gz", "flair", False),
        ("T1_FLAIR.nii.gz", "t1", False),
        ("BraTS2021_00001_flair.nii.gz", "flair", True),
        ("patient07_T2W.nii.gz", "flair", False),
        ("sub-01_FLAIR_gd.nii.gz", "flair", False),
        ("t1_registered_to_t2.nii.gz", "t1", True),
        ("patient07_T2W.nii.gz", "t1", False),
        ("sub-01_T1w.nii.gz", "t1", True),
        ("sub-01_desc-reconstruction_T1w.nii.gz", "t1", False),
        ("sub-01_desc-lesions_dseg.nii.gz", "t1", False),
        ("sub-01_mod-T1w_defacemask.nii.gz", "t1", False),
        ("sub-01_brainmask.nii.gz", "t1", False),
        ("tsetse_fly.nii.gz", "t1", True),
        ("segmented.nii.gz", "t1", True),
    ],
)
def test_what_a_name_says(name, modality, taken):
    assert (name not in left_out([name], modality)) is taken


@pytest.mark.parametrize("end", ["dlmuse", "aseg", "segmentation", "aparc+aseg"])
def test_parcellations_are_no_scans_wherever_they_lie(end):
    assert left_out([f"IXI013-HH-1212_{end}.nii.gz"], "t1")


@pytest.mark.parametrize("end", ["roi", "gt", "truth", "bet", "gm", "pve_0", "brain", "tumour_1"])
def test_a_scans_name_with_words_of_masks_is_its_mask(end):
    mask, told = f"IXI013-HH-1212_{end}.nii.gz", "named as masks or results"
    for scan in ("IXI013-HH-1212.nii.gz", "IXI013-HH-1212_t1.nii.gz", "ixi013-hh-1212_t1.nii"):
        assert left_out([scan, mask], "t1") == {mask: told}
    for other in ("IXI014-HH-1212_t1.nii.gz", "IXI013-HH-1212.json", mask):
        assert not left_out([other, mask], "t1")


def test_a_name_that_ends_in_the_contrast_or_says_more_than_a_mask_is_a_scans():
    names = ["p1_t1.nii.gz", "p1_brain_t1.nii.gz", "p1_2_brain.nii.gz", "p1_followup_brain.nii.gz", "p1_orig.nii.gz"]
    assert left_out(names, "t1") == {}


@pytest.mark.parametrize("end", ["ct", "pet", "CTA"])
def test_ct_and_pet_are_other_contrasts(end):
    assert left_out([f"p1_{end}.nii.gz", "p1.nii.gz"], "t1") == {f"p1_{end}.nii.gz": "named after another contrast"}
    assert left_out([f"p1_t1_to_{end}.nii.gz"], "t1") == {}


def test_scans_of_one_name_are_told_apart_by_their_folders(tmp_path):
    put(tmp_path, "a/anat/T1.nii.gz", "b/anat/T1.nii.gz", "b/anat/other.nii.gz", "c/t1.nii.gz")
    assert names_of(tmp_path) == ["a_anat_T1", "b_anat_T1", "other", f"{tmp_path.name}_c_t1"]
    assert names_of(tmp_path / "a" / "anat" / "T1.nii.gz", tmp_path / "a", tmp_path / "b" / "anat") == [
        "a_anat_T1",
        "b_anat_T1",
        "other",
    ]
    assert names_of(tmp_path / "b" / "anat" / "T1.nii.gz") == ["T1"]


def test_one_scan_in_two_formats_is_refused(tmp_path):
    put(tmp_path, "scan.nii.gz", "scan.nii")
    with pytest.raises(InputError, match=r"would be named '.*scan' in the results, as .*scan\.nii is"):
        names_of(tmp_path)


def test_names_are_safe_and_do_not_meet_the_files_of_the_run(tmp_path):
    put(tmp_path, "site/run.nii.gz", "site/-rf.nii.gz", "site/a:b\n<img src=x onerror=alert(1)>.nii.gz")
    (tmp_path / "site" / "run.nii.gz").rename(tmp_path / "site" / "RUN.nii.gz")
    put(tmp_path, os.fsdecode(b"site/M\xfcller.nii.gz"), "site/" + "ü" * 120 + ".nii.gz")
    scans = find_scans([tmp_path], modality="t1", output=tmp_path / "out")
    names = {scan.source.name[:3]: scan.name for scan in scans}
    assert names.pop("ü" * 3).startswith("ü" * 60)
    assert names == {"RUN": "site_RUN", "-rf": "rf", "a:b": "a_b__img src=x onerror=alert(1)_", "M\udcfcl": "M_ller"}
    for scan in scans:
        for path in output_paths(scan).values():
            (tmp_path / path).write_bytes(b"")
            assert len(path.encode()) < 200
    assert safe_name("...") == "scan"


@pytest.mark.parametrize(
    ("given", "output"),
    [("scans", "scans"), ("scans", "."), ("scans/a.nii.gz", "scans"), ("scans/a.nii.gz", "."), ("link", "scans")],
)
def test_results_are_not_mixed_with_scans(tmp_path, given, output):
    put(tmp_path, "scans/a.nii.gz")
    (tmp_path / "link").symlink_to(tmp_path / "scans")
    with pytest.raises(InputError, match=r"lies in the output folder .*Choose another one"):
        names_of(tmp_path / given, output=tmp_path / output)


def test_a_scan_given_as_output_folder_is_told_another_beside_it(tmp_path):
    put(tmp_path, "a.nii.gz")
    with pytest.raises(InputError, match=r"cannot be the output folder, too. Choose .*instance \S+/results$") as raised:
        names_of(tmp_path / "a.nii.gz", output=tmp_path / "a.nii.gz")
    assert str(tmp_path / "results") in raised.value.remedy


def test_results_below_the_scans_are_never_scored(tmp_path):
    put(tmp_path, "scans/a.nii.gz", "scans/out/a_anomaly.nii.gz", "scans/out/strange.nii.gz")
    put(
        tmp_path,
        "scans/earlier/a_scan.nii.gz",
        "scans/earlier/a_brain.nii.gz",
        "scans/earlier/a_anomaly.nii.gz",
        "scans/earlier/a_lesions.nii.gz",
    )
    assert names_of(tmp_path / "scans", output=tmp_path / "scans" / "out") == ["a"]
    with pytest.raises(InputError, match=r"holds no t1 scan: .*left out files: 4 named as masks or results"):
        names_of(tmp_path / "scans" / "earlier")


def test_links_are_followed_once_and_broken_ones_do_not_disappear(tmp_path):
    put(tmp_path, "scans/deep/a.nii.gz", "store/b.nii.gz")
    (tmp_path / "scans" / "deep" / "loop").symlink_to(tmp_path / "scans")
    (tmp_path / "scans" / "more").symlink_to(tmp_path / "store")
    (tmp_path / "scans" / "again").symlink_to(tmp_path / "store")
    (tmp_path / "scans" / "missing.nii.gz").symlink_to(tmp_path / "annex" / "object")
    (tmp_path / "scans" / "round.nii.gz").symlink_to(tmp_path / "scans" / "round.nii.gz")
    (tmp_path / "scans" / "same.nii.gz").symlink_to(tmp_path / "scans" / "deep" / "a.nii.gz")
    scans = find_scans([tmp_path / "scans", tmp_path / "scans" / "more"], modality="t1", output=tmp_path / "out")
    assert [scan.name for scan in scans] == ["missing", "round", "same", "b", "a"]
    with pytest.raises(InputError, match="cannot be read"):
        open_scan(scans[1])
    with pytest.raises(InputError, match="is a link to a file that is missing"):
        open_scan(scans[0])


def test_pipes_and_sockets_in_a_folder_are_left_alone(tmp_path):
    put(tmp_path, "a.nii.gz")
    os.mkfifo(tmp_path / "control")  # which opening would wait for
    assert names_of(tmp_path) == ["a"]


def test_what_holds_no_scan_is_told_what_was_looked_for(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no t1 scan: looked for \.nii, \.nii\.gz and DICOM files") as raised:
        names_of(tmp_path / "empty")
    assert raised.value.remedy
    (tmp_path / "empty" / "notes.txt").write_text("none here")
    put(tmp_path, "empty/x_flair.nii.gz")
    with pytest.raises(InputError, match="left out files: 1 of another kind, 1 named after another contrast"):
        names_of(tmp_path / "empty")
    for name, fault in {"gone": "no such file or folder", "empty/notes.txt": "is no scan that can be read"}.items():
        with pytest.raises(InputError, match=fault):
            names_of(tmp_path / name)
    (tmp_path / "x.mgz").write_bytes(b"")
    with pytest.raises(InputError, match="mri_convert"):
        open_scan(find_scans([tmp_path / "x.mgz"], modality="t1", output=tmp_path / "out")[0])


def test_an_input_without_a_scan_stops_no_other(tmp_path, caplog):
    put(tmp_path, "scans/a.nii.gz", "bids/sub-01/anat/sub-01_T1w.nii.gz")
    (tmp_path / "bids" / "dataset_description.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("none here")
    given = [tmp_path / name for name in ("gone.nii.gz", "scans", "empty", "notes.txt", "bids")]
    scans = find_scans(given, modality="t1", output=tmp_path / "out")
    assert [scan.name for scan in scans] == ["gone", "a", "empty", "notes.txt", "sub-01_T1w"]
    faults = {scan.name: scan.fault for scan in scans if scan.fault}
    assert [(name, fault.fault.split(":")[0]) for name, fault in faults.items()] == [
        ("gone", "no such file or folder"),
        ("empty", "holds no t1 scan"),
        ("notes.txt", "is no scan that can be read"),
    ]
    for scan in scans:
        if scan.fault:
            assert str(scan.fault) in caplog.text
            with pytest.raises(InputError, match=scan.fault.fault):
                open_scan(scan)
    with pytest.raises(InputError, match="lies in the data set"):
        find_scans(given, modality="t1", output=tmp_path / "bids" / "results")
    faulty = find_scans(given[2:4], modality="t1", output=tmp_path / "out")
    assert all(scan.fault for scan in faulty)


def test_folders_that_cannot_be_read_are_named(tmp_path, monkeypatch, caplog):
    """As root may read everything, the operating system is asked to refuse by a stand-in."""
    put(tmp_path, "open/a.nii.gz", "closed/b.nii.gz")
    listed = os.scandir

    def refuse(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert names_of(tmp_path) == ["a"]
    assert "closed: cannot be read (Permission denied); its scans are missing" in caplog.text
    with pytest.raises(InputError, match=r"cannot be read .Permission denied"):
        names_of(tmp_path / "closed")


def test_nifti_and_dicom_side_by_side_are_both_taken(tmp_path):
    put(tmp_path, "scans/a.nii.gz")
    write_series(tmp_path / "scans" / "series", Volume.load(SCAN))
    (tmp_path / "scans" / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    scans = find_scans([tmp_path / "scans"], modality="t1", output=tmp_path / "out")
    assert [(scan.name, scan.kind) for scan in scans] == [("a", "nifti"), ("series", "dicom")]
    np.testing.assert_array_equal(open_scan(scans[0]).array, open_scan(scans[1]).array)
