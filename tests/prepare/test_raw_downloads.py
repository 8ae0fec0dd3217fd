import logging
import tarfile
from collections import Counter
from pathlib import Path

import downloads
import pytest

from brainuad.errors import InputError
from brainuad.files import sha256
from brainuad.prepare.raw import DATASETS, raw_scans
from brainuad.prepare.raw.archives import digest, nifti_files, read_volume
from brainuad.prepare.raw.splits import healthy_folds, patient_split

T1 = "IXI013-HH-1212-T1.nii.gz"


def test_ixi_as_archives_gives_what_the_unpacked_folder_gives(tmp_path):
    root = downloads.ixi(tmp_path / "IXI")
    first, second = raw_scans(root, "ixi", "t1")
    assert (first.subject, second.subject) == ("IXI002-Guys-0828", "IXI013-HH-1212")
    assert (first.age, second.age) == (35.8, 46.71)
    assert first.images == {"t1": root / "IXI-T1.tar/IXI002-Guys-0828-T1.nii.gz"}
    assert second.images == {"t1": root / "IXI-T1.tar" / T1, "t2": root / "IXI-T2.tar/IXI013-HH-1212-T2.nii.gz"}
    assert first.splits == healthy_folds("ixi", "IXI002")
    assert first.split == first.splits[0]
    (alone,) = raw_scans(root / "IXI-T1.tar", "ixi", "t1")[1:]
    assert (alone.age, alone.images) == (46.71, {"t1": second.images["t1"]})
    for archive in sorted(root.glob("*.tar")):
        with tarfile.open(archive) as tar:
            tar.extractall(root / archive.stem, filter="data")
        archive.unlink()
    unpacked = raw_scans(root, "ixi", "t1")
    assert [(s.subject, s.age, s.splits) for s in unpacked] == [(s.subject, s.age, s.splits) for s in (first, second)]
    assert unpacked[1].images["t1"] == root / "IXI-T1" / T1
    assert [scan.subject for scan in raw_scans(root, "ixi", "t2")] == ["IXI013-HH-1212"]


def test_members_of_an_archive_are_read_like_files(tmp_path):
    path = downloads.ixi(tmp_path / "IXI") / "IXI-T1.tar" / T1
    assert (read_volume(path).array == read_volume(downloads.HEAD).array).all()
    assert digest(path) == sha256(downloads.HEAD)
    with pytest.raises(InputError, match="no such file in the archive"):
        digest(path.with_name("IXI999.nii.gz"))
    with tarfile.open(tmp_path / "bad.tar", "w") as tar:
        tar.add(downloads.FILES / "README.md", T1)
    with pytest.raises(InputError, match=rf"bad\.tar/{T1}: is not a readable NIfTI"):  # no temporary name
        read_volume(tmp_path / "bad.tar" / T1)


@pytest.mark.parametrize(
    ("name", "kind", "fault"),
    [
        (f"../{T1}", tarfile.REGTYPE, "leads out of it"),
        (f"/tmp/{T1}", tarfile.REGTYPE, "leads out of it"),
        (f"a/../../{T1}", tarfile.REGTYPE, "leads out of it"),
        (T1, tarfile.SYMTYPE, "link or device"),
        (T1, tarfile.LNKTYPE, "link or device"),
        (T1, tarfile.FIFOTYPE, "link or device"),
        (T1, tarfile.CHRTYPE, "link or device"),
    ],
)
def test_archives_that_are_not_what_they_seem_are_refused(tmp_path, name, kind, fault):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc/passwd"
    with tarfile.open(tmp_path / "IXI-T1.tar", "w") as tar:
        tar.addfile(member)
    with pytest.raises(InputError, match=fault):
        raw_scans(tmp_path, "ixi", "t1")
    assert [path.name for path in tmp_path.iterdir()] == ["IXI-T1.tar"]


@pytest.mark.parametrize("mode", ["w:gz", "cut", "text"])
def test_archives_that_cannot_be_read_say_what_to_do(tmp_path, mode):
    path = tmp_path / "IXI-T1.tar"
    if mode == "text":
        path.write_text("no archive")
    else:
        with tarfile.open(path, "w:gz" if mode == "w:gz" else "w") as tar:
            tar.add(downloads.HEAD, T1)
        if mode == "cut":
            path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(InputError, match="Unpack it and give the folder"):
        list(map(digest, nifti_files(path)))


def test_brats21(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        first, second = raw_scans(downloads.brats21(tmp_path / "BraTS"), "brats21", "t2")
    assert (first.subject, first.dataset, first.label) == ("BraTS2021_00000", "Brats21", 1)
    assert {name: path.name for name, path in second.images.items()} == {
        modality: f"BraTS2021_00002_{modality}.nii.gz" for modality in ("t1", "t2", "flair")
    }
    assert second.lesion == tmp_path / "BraTS/BraTS2021_00002/BraTS2021_00002_seg.nii.gz"
    assert "1 subject(s) left out, without lesion labels: BraTS2021_00777" in caplog.text


def test_mslub(tmp_path):
    first, second = raw_scans(downloads.mslub(tmp_path / "MSLUB"), "mslub", "t1")
    assert (first.subject, first.mask.name, first.lesion.name) == (
        "patient01", "patient01_brainmask.nii.gz", "patient01_consensus_gt.nii.gz",
    )  # fmt: skip
    assert {path.parent.name for path in (*first.images.values(), first.mask)} == {"patient01"}  # not raw/
    assert set(second.images) == {"t1", "t2", "flair"}
    assert second.images["t1"] == tmp_path / "MSLUB/cross_sectional/coregistered/patient08/T1W.nii.gz"


def test_atlas_v2(tmp_path):
    first, second = raw_scans(downloads.atlas_v2(tmp_path / "ATLAS_2"), "atlas_v2", "t1")
    assert (first.subject, first.dataset) == ("sub-r001s001", "ATLAS_v2")
    assert first.images["t1"].name == "sub-r001s001_ses-1_space-MNI152NLin2009aSym_T1w.nii.gz"
    assert (second.subject, second.images["t1"].name) == ("sub-r009s042", "sub-r009s042_ses-1_T1w.nii.gz")
    assert second.lesion.name == "sub-r009s042_ses-1_label-L_desc-T1lesion_mask.nii.gz"
    with pytest.raises(InputError, match=r"holds no t2 scan laid out like atlas_v2\. Expected: BIDS tree"):
        raw_scans(tmp_path, "atlas_v2", "t2")


def test_wmh(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        first, second = raw_scans(downloads.wmh(tmp_path / "WMH"), "wmh", "t1")
    assert (first.subject, second.subject) == ("Philips_VU_PETMR_01_161", "Utrecht_0")
    assert (first.dataset, first.lesion_label, first.label) == ("WMH", 1, 1)
    orig = tmp_path / "WMH/training/Utrecht/0/orig"
    assert second.images == {"t1": orig / "T1.nii.gz", "flair": orig / "FLAIR.nii.gz"}
    assert "left out, without T1 in orig and pre: Singapore_50" in caplog.text
    assert raw_scans(tmp_path / "WMH", "wmh", "flair")[1].modality == "flair"
    with pytest.raises(InputError, match="holds no t2 scan laid out like wmh"):
        raw_scans(tmp_path / "WMH", "wmh", "t2")


def test_hashed_splits_have_the_documented_shares_and_never_change():
    people = [f"IXI{number:03d}" for number in range(1000)]
    folds = [healthy_folds("ixi", name) for name in people]
    assert Counter(fold[0] for fold in folds)["test"] == pytest.approx(250, abs=40)
    for name, fold in zip(people, folds, strict=True):
        assert fold in (
            ("test",) * 5,
            *(tuple("val" if k == own else "train" for k in range(5)) for own in range(5)),
        ), name
    for k in range(5):
        assert Counter(fold[k] for fold in folds)["val"] == pytest.approx(150, abs=35)
    assert Counter(patient_split("WMH", name) for name in people)["val"] == pytest.approx(250, abs=40)
    # whoever publishes figures relies on these
    assert [n for n in range(1, 31) if patient_split("MSLUB", f"patient{n:02d}") == "val"] == [5, 17, 18, 24]
    assert healthy_folds("ixi", "IXI002") == ("train", "val", "train", "train", "train")
    assert healthy_folds("ixi", "IXI013") == ("test",) * 5


def test_splits_of_ones_own(tmp_path):
    root = downloads.ixi(tmp_path / "IXI")
    table = tmp_path / "splits.csv"
    table.write_text("subject,split_fold1,split_fold0\nIXI013,val,train\nIXI777,test,test\n")
    first, second = raw_scans(root, "ixi", "t1", splits=table)
    assert (first.split, first.splits) == ("", ("",))
    assert (second.split, second.splits) == ("train", ("train", "val"))
    table.write_text("subject,split\nIXI013-HH-1212,test\n")
    assert raw_scans(root, "ixi", "t1", splits=table)[1].split == "test"


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("subject\nIXI013\n", "lacks a column split"),
        ("subject,split\nIXI013,training\n", "line 2: split 'training' is unknown"),
        ("subject,split\nIXI777,test\n", "lists none of the subjects. They are called IXI002-Guys-0828"),
        ("name,split\nIXI013,test\n", "lacks the columns subject"),
    ],
)
def test_bad_splits(tmp_path, content, fault):
    table = tmp_path / "splits.csv"
    table.write_text(content)
    with pytest.raises(InputError, match=fault):
        raw_scans(downloads.ixi(tmp_path / "IXI"), "ixi", "t1", splits=table)


def test_a_folder_of_something_else_says_what_was_expected(tmp_path):
    root: Path = downloads.wmh(tmp_path / "WMH")
    with pytest.raises(InputError, match=r"laid out like ixi. Expected: IXI-T1\.tar") as raised:
        raw_scans(root, "ixi", "t1")
    assert "\n" not in str(raised.value)


def test_the_documentation_names_every_data_set():
    text = (Path(__file__).parents[2] / "docs/datasets.md").read_text()
    assert {name for name in DATASETS if f"--dataset {name}" in text} == set(DATASETS)
