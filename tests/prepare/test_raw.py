import shutil
from pathlib import Path

import pytest

from brainuad.errors import InputError
from brainuad.prepare.raw import raw_scans

FILES = Path(__file__).parent.parent / "files"


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(FILES / "mslub19_mask_4mm.nii.gz", path)


def test_ixi_matches_files_by_number_and_reads_splits(tmp_path):
    touch(
        tmp_path / "t1/IXI013-HH-1212_t1.nii.gz", tmp_path / "t1/IXI014-HH-1236-T1.nii.gz",
        tmp_path / "t2/IXI013-HH-1212-T2.nii.gz", tmp_path / "brainseg/IXI013-HH-1212_dlmuse.nii.gz",
    )  # fmt: skip
    (tmp_path / "participants.csv").write_text(
        "participant_id,split_fold0,age,sex\nIXI013-HH-1212,train,46.7,M\nIXI014-HH-1236,extra,,F\n"
    )
    first, second = raw_scans(tmp_path, "ixi", "t1")
    assert (first.subject, first.split, first.age) == ("IXI013-HH-1212", "train", 46.7)
    assert set(first.images) == {"t1", "t2"}
    assert first.mask is not None
    assert (second.subject, second.split, second.age, second.mask) == ("IXI014-HH-1236", "", None, None)
    assert [scan.subject for scan in raw_scans(tmp_path, "ixi", "t2")] == ["IXI013-HH-1212"]


def test_two_scans_of_one_ixi_subject_are_told(tmp_path):
    touch(tmp_path / "t1/IXI013-HH-1212_t1.nii.gz", tmp_path / "t1/IXI013-HH-1212_followup_t1.nii.gz")
    with pytest.raises(InputError, match=r"1212_t1\.nii\.gz: and .*followup_t1\.nii\.gz are of one subject"):
        raw_scans(tmp_path, "ixi", "t1")


def test_mslub_needs_the_lesion_mask(tmp_path):
    touch(tmp_path / "patient07_t1.nii.gz", tmp_path / "patient07_t2.nii.gz", tmp_path / "patient07_seg.nii.gz")
    (scan,) = raw_scans(tmp_path, "mslub", "t1")
    assert (scan.dataset, scan.split, set(scan.images)) == ("MSLUB", "test", {"t1", "t2"})
    (tmp_path / "patient07_seg.nii.gz").unlink()
    with pytest.raises(InputError, match="lesion mask of this patient is missing"):
        raw_scans(tmp_path, "mslub", "t1")


def test_manifest(tmp_path):
    path = tmp_path / "scans.csv"
    path.write_text(
        "subject,image,mask,seg,label,split,dataset,age\nA,a.nii.gz,m.nii.gz,,0,train,ixi,30\nB,b.nii.gz,,s.nii.gz,1,test,,\n"
    )
    first, second = raw_scans(path, "manifest", "t2")
    assert first.images == {"t2": tmp_path / "a.nii.gz"}
    assert (first.dataset, first.lesion, first.age) == ("ixi", None, 30)
    assert (second.dataset, second.mask, second.lesion) == ("MANIFEST", None, tmp_path / "s.nii.gz")
    assert (first.label, second.label) == (0, 1)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("A,a.nii,,0,", ("ixi", 0)),
        ("A,a.nii,,,IXI", ("ixi", 0)),
        ("A,a.nii,,2,", ("MANIFEST", 2)),  # a patient without a lesion mask is no healthy subject
        ("A,a.nii,s.nii,,", ("MANIFEST", 1)),
        ("A,a.nii,s.nii,4,Ours", ("Ours", 4)),
    ],
)
def test_only_healthy_scans_of_a_manifest_join_ixi(tmp_path, row, expected):
    path = tmp_path / "scans.csv"
    path.write_text(f"subject,image,seg,label,dataset\n{row}\n")
    (scan,) = raw_scans(path, "manifest", "t1")
    assert (scan.dataset, scan.label) == expected


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", "lacks the columns image, subject"),
        ("subject,picture\nA,b\n", "image"),
        ("subject,image\nA,a.nii\nA,b.nii\n", "twice: A"),
        ("subject,image\nA,a.nii\n../B,b.nii\n", "line 3: subject '../B'"),
        ("subject,image,split\nA,a.nii,training\n", "split 'training' is unknown"),
        ("subject,image\nA,\n", "column image is empty"),
        ("subject,image,label\nA,a.nii,ill\n", "label 'ill' is no number"),
        ("subject,image,label,dataset\nA,a.nii,1,IXI\n", "line 2: label 1 is not healthy"),
    ],
)
def test_bad_manifests(tmp_path, content, fault):
    path = tmp_path / "scans.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=fault):
        raw_scans(path, "manifest", "t1")


def test_wrong_folders(tmp_path):
    with pytest.raises(InputError, match="no such"):
        raw_scans(tmp_path / "nowhere", "ixi", "t1")
    with pytest.raises(InputError, match="holds no t1 scan laid out like ixi"):
        raw_scans(tmp_path, "ixi", "t1")
