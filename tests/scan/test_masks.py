"""Which mask belongs to which scan."""

from __future__ import annotations

from pathlib import Path

import pytest

from brainuad.errors import InputError
from brainuad.scan.masks import mask_for


@pytest.mark.parametrize(
    ("scan", "files", "words", "found"),
    [
        ("patient07_t1.nii.gz", ["patient07_t1.nii.gz", "patient07_seg.nii.gz"], ("seg",), "patient07_t1.nii.gz"),
        ("patient07_t1.nii.gz", ["patient07_flair.nii.gz", "patient07_seg.nii.gz"], ("seg",), "patient07_seg.nii.gz"),
        ("IXI013-HH-1212_t1.nii.gz", ["IXI013-HH-1212_dlmuse.nii.gz"], ("brain",), "IXI013-HH-1212_dlmuse.nii.gz"),
        ("sub-01_T1w.nii.gz", ["a/sub-01_desc-brain_mask.nii.gz", "a/sub-01_label-lesion_mask.nii.gz"], ("brain",),
         "a/sub-01_desc-brain_mask.nii.gz"),
        ("sub-01_T1w.nii.gz", ["sub-010_desc-brain_mask.nii.gz", "sub-01_notes.txt"], ("brain",), None),
        ("scan.nii", ["scan.nii.gz"], ("brain",), "scan.nii.gz"),
        ("scan.nii", ["scan2_mask.nii.gz", "other.nii"], ("brain",), None),
    ],
)  # fmt: skip
def test_masks_are_found_by_name(tmp_path, scan, files, words, found):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    expected = tmp_path / found if found else None
    assert mask_for(Path("/elsewhere") / scan, tmp_path, words=words) == expected


def test_the_scan_itself_is_no_mask(tmp_path):
    (tmp_path / "scan.nii.gz").touch()
    assert mask_for(tmp_path / "scan.nii.gz", tmp_path, words=()) is None


def test_a_file_is_the_mask_and_doubt_is_an_error(tmp_path):
    for name in ("p1_mask_a.nii.gz", "p1_mask_b.nii.gz"):
        (tmp_path / name).touch()
    assert (
        mask_for(Path("p1_t1.nii"), tmp_path / "p1_mask_a.nii.gz", words=()) == tmp_path / "p1_mask_a.nii.gz"
    )
    with pytest.raises(
        InputError, match=r"several masks for p1_t1.nii \(p1_mask_a.nii.gz, p1_mask_b.nii.gz\)"
    ):
        mask_for(Path("p1_t1.nii"), tmp_path, words=("mask",))
    with pytest.raises(InputError, match="no such file or folder"):
        mask_for(Path("p1_t1.nii"), tmp_path / "none", words=())


def test_a_scan_is_never_its_own_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "raw").mkdir()
    for name in ("p1_t1.nii.gz", "p1_mask.nii.gz"):
        (tmp_path / "raw" / name).touch()
    (tmp_path / "linked").symlink_to(tmp_path / "raw")
    monkeypatch.chdir(tmp_path)
    for folder in ("raw", "raw/../raw", "linked", tmp_path / "raw"):
        for scan in (Path("raw/p1_t1.nii.gz"), tmp_path / "raw" / "p1_t1.nii.gz"):
            found = mask_for(scan, Path(folder), words=("mask",))
            assert found is not None
            assert found.name == "p1_mask.nii.gz"
    (tmp_path / "raw" / "p1_mask.nii.gz").unlink()
    assert mask_for(tmp_path / "raw" / "p1_t1.nii.gz", Path("raw"), words=("mask",)) is None
