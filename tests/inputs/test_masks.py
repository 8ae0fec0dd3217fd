"""Which mask belongs to which scan."""

from __future__ import annotations

from pathlib import Path

import pytest

from brainuad.errors import InputError
from brainuad.inputs.masks import BRAIN, LESION, MaskKind, mask_for


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


@pytest.mark.parametrize(
    ("scan", "files", "kind", "found"),
    [
        ("patient07_t1.nii.gz", ["patient07_t1.nii.gz"], LESION, "patient07_t1.nii.gz"),
        ("patient07_t1.nii.gz", ["patient07_t1.nii.gz", "patient07_seg.nii.gz"], LESION, "patient07_seg.nii.gz"),
        ("patient07_t1.nii.gz", ["patient07_flair.nii.gz", "patient07_consensus_gt.nii"], LESION,
         "patient07_consensus_gt.nii"),
        ("patient07_t1.nii.gz", ["patient07_mask.nii.gz", "patient07_lesion.nii.gz"], LESION,
         "patient07_lesion.nii.gz"),
        ("patient07_t1.nii.gz", ["patient07_brain.nii.gz", "patient07_mask.nii.gz"], BRAIN, "patient07_mask.nii.gz"),
        ("patient07_t1.nii.gz", ["patient07_mask.nii.gz", "a/patient07_brain_mask.nii.gz"], BRAIN,
         "a/patient07_brain_mask.nii.gz"),
        ("patient07_t1.nii.gz", ["patient07_seg.nii.gz", "patient07_brainmask.nii.gz"], BRAIN,
         "patient07_brainmask.nii.gz"),
        ("IXI013-HH-1212_t1.nii.gz", ["IXI013-HH-1212_dlmuse.nii.gz"], BRAIN, "IXI013-HH-1212_dlmuse.nii.gz"),
        ("sub-01_T1w.nii.gz", ["a/sub-01_desc-brain_mask.nii.gz", "a/sub-01_label-lesion_mask.nii.gz"], BRAIN,
         "a/sub-01_desc-brain_mask.nii.gz"),
        ("sub-01_T1w.nii.gz", ["a/sub-01_desc-brain_mask.nii.gz", "a/sub-01_label-lesion_mask.nii.gz"], LESION,
         "a/sub-01_label-lesion_mask.nii.gz"),
        ("sub-01_ses-2_T1w.nii", ["sub-01_ses-1_desc-brain_mask.nii", "sub-01_ses-2_space-T1w_desc-brain_mask.nii"],
         BRAIN, "sub-01_ses-2_space-T1w_desc-brain_mask.nii"),
        ("scan.nii", ["scan.nii.gz"], BRAIN, "scan.nii.gz"),
        ("scan.nii", ["scan_mask.nii.gz"], BRAIN, "scan_mask.nii.gz"),
    ],
)  # fmt: skip
def test_masks_are_found_by_name(tmp_path: Path, scan: str, files: list[str], kind: MaskKind, found: str) -> None:
    put(tmp_path, *files)
    assert mask_for(Path("/elsewhere") / scan, tmp_path, kind) == tmp_path / found


@pytest.mark.parametrize(
    ("scan", "other"),
    [
        ("p1_t1.nii.gz", "p1_followup_mask.nii.gz"),
        ("p1_t1.nii.gz", "p1_t2_mask.nii.gz"),
        ("p1_t1.nii.gz", "p10_mask.nii.gz"),
        ("p1_t1.nii.gz", "p1_flair.nii.gz"),
        ("sub-01_T1w.nii.gz", "sub-01_ses-2_desc-brain_mask.nii.gz"),
        ("sub-01_T1w.nii.gz", "sub-01_run-2_mask.nii.gz"),
        ("sub-01_ses-1_T1w.nii.gz", "sub-01_desc-brain_mask.nii.gz"),
        ("sub-01_run-1_T1w.nii.gz", "sub-01_run-2_mask.nii.gz"),
        ("scan.nii", "scan2_mask.nii.gz"),
        ("scan.nii", "scan_mask.txt"),
    ],
)
def test_a_mask_of_another_scan_is_not_taken(tmp_path: Path, scan: str, other: str) -> None:
    put(tmp_path, other)
    assert mask_for(Path("/elsewhere") / scan, tmp_path, BRAIN) is None
    assert mask_for(Path("/elsewhere") / scan, tmp_path, LESION) is None


def test_neither_the_scan_itself_nor_a_copy_is_its_mask(tmp_path: Path) -> None:
    put(tmp_path, "scans/patient19_t1.nii.gz")
    scan = tmp_path / "scans" / "patient19_t1.nii.gz"
    put(tmp_path, "truth/patient19_t1.nii.gz")
    copy = tmp_path / "truth" / "patient19_t1.nii.gz"
    copy.write_bytes(scan.read_bytes())
    for folder in ("scans", "truth"):
        assert mask_for(scan, tmp_path / folder, LESION) is None
    copy.write_text("an outline of lesions")
    assert mask_for(scan, tmp_path / "truth", LESION) == copy


def test_a_file_is_the_mask_and_doubt_is_an_error(tmp_path: Path) -> None:
    put(tmp_path, "a/p1_mask.nii.gz", "b/p1_mask.nii.gz")
    one = tmp_path / "a" / "p1_mask.nii.gz"
    assert mask_for(Path("p1_t1.nii"), one, BRAIN) == one
    with pytest.raises(InputError, match=r"several masks for p1_t1.nii \(p1_mask.nii.gz, p1_mask.nii.gz\)"):
        mask_for(Path("p1_t1.nii"), tmp_path, BRAIN)
    with pytest.raises(InputError, match="no such file or folder"):
        mask_for(Path("p1_t1.nii"), tmp_path / "none", BRAIN)


def test_a_scan_is_never_its_own_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "raw/p1_t1.nii.gz", "raw/p1_mask.nii.gz")
    (tmp_path / "linked").symlink_to(tmp_path / "raw")
    monkeypatch.chdir(tmp_path)
    for folder in ("raw", "raw/../raw", "linked", tmp_path / "raw"):
        for scan in (Path("raw/p1_t1.nii.gz"), tmp_path / "raw" / "p1_t1.nii.gz"):
            found = mask_for(scan, Path(folder), BRAIN)
            assert found is not None
            assert found.name == "p1_mask.nii.gz"
    (tmp_path / "raw" / "p1_mask.nii.gz").unlink()
    assert mask_for(tmp_path / "raw" / "p1_t1.nii.gz", Path("raw"), BRAIN) is None
