"""Every fault a cohort can have is found and named, and a sound cohort passes."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from paper_layout import FILES, split_row, write_split

from brainuad.data.check import Problem, check_case, check_data_dir, check_files
from brainuad.data.cohort import Case, read_cases

PaperTree = Callable[..., Path]


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """One real case whose three files a test may spoil."""
    paths = {kind: tmp_path / f"{kind}.nii.gz" for kind in ("t1", "mask", "seg")}
    for kind, path in paths.items():
        shutil.copyfile(FILES / f"mslub19_{kind}_4mm.nii.gz", path)
    return Case("patient19", "MSLUB", "test", paths["t1"], paths["mask"], paths["seg"], 1, None)


def change(path: Path | None, edit: Callable[[np.ndarray], np.ndarray], dtype: type = np.float32) -> None:
    assert path is not None
    image = nib.load(path)
    array = edit(np.asarray(image.dataobj, dtype=dtype))
    nib.save(nib.Nifti1Image(array.astype(dtype), image.affine), path)


def only(problems: list[Problem]) -> Problem:
    assert len(problems) == 1, [str(problem) for problem in problems]
    return problems[0]


def test_a_sound_case_has_no_problem(case: Case) -> None:
    assert check_case(case) == []
    assert check_case(replace(case, lesion=None, label=0, split="train")) == []


def test_a_standardised_image_and_a_brain_as_lesion_are_errors(case: Case) -> None:
    change(case.image, lambda array: np.where(array > 5, (array - array[array > 5].mean()), 0))
    problem = only(check_case(case))
    assert (problem.severity, problem.path) == ("error", str(case.image))
    assert "looks standardised" in problem.fault
    shutil.copyfile(FILES / "mslub19_t1_4mm.nii.gz", case.image)
    shutil.copyfile(case.mask, case.lesion)
    problem = only(check_case(case))
    assert (problem.severity, problem.path) == ("error", str(case.lesion))
    assert "most of a brain" in problem.fault


@pytest.mark.parametrize("kind", ["image", "mask", "lesion"])
def test_missing_files(case: Case, kind: str) -> None:
    path = getattr(case, kind)
    path.unlink()
    problem = only(check_case(case))
    assert (problem.severity, problem.path) == ("error", str(path))
    assert "no such file" in problem.fault


@pytest.mark.parametrize("kind", ["image", "mask", "lesion"])
@pytest.mark.parametrize("damage", ["truncated", "cut_inside", "data_type", "affine", "text", "empty"])
def test_unreadable_files(case: Case, kind: str, damage: str) -> None:
    path: Path = getattr(case, kind)
    content = path.read_bytes()
    raw = gzip.decompress(content)
    spoiled = {
        "data_type": gzip.compress(raw[:70] + b"\xff\x7f" + raw[72:]),
        "affine": gzip.compress(raw[:280] + bytes(48) + raw[328:]),
        "truncated": content[: len(content) // 2],
        "cut_inside": gzip.compress(raw[:5000]),
        "text": b"<html>404</html>",
        "empty": b"",
    }
    path.write_bytes(spoiled[damage])
    problem = only(check_case(case))
    assert (problem.severity, problem.path) == ("error", str(path))
    assert problem.remedy


@pytest.mark.parametrize(
    ("edit", "shape"), [(lambda a: a[:, :, 10], "(40, 48)"), (lambda a: np.stack([a, a], -1), "(40, 48, 30, 2)")]
)
def test_images_that_are_not_three_dimensional(
    case: Case, edit: Callable[[np.ndarray], np.ndarray], shape: str
) -> None:
    change(case.image, edit)
    problem = only(check_case(case))
    assert problem.severity == "error"
    assert shape in problem.fault


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers(case: Case, value: float) -> None:
    def spoil(array: np.ndarray) -> np.ndarray:
        array[20, 20, 10:13] = value
        return array

    change(case.image, spoil)
    problem = only(check_case(case))
    assert problem.severity == "error"
    assert "3 NaN or infinite" in problem.fault


def test_shapes_that_differ(case: Case) -> None:
    change(case.mask, lambda mask: mask[:, :, :-1])
    first, second = check_case(case)
    assert (first.severity, first.path) == ("error", str(case.mask))
    assert "(40, 48, 29)" in first.fault
    assert "(40, 48, 30)" in first.fault
    assert (second.severity, second.path) == ("error", str(case.lesion))


def test_constant_image(case: Case) -> None:
    change(case.image, lambda image: np.full_like(image, 7))
    assert only(check_case(case)).fault == "is constant (7)"


def test_image_constant_inside_the_mask(case: Case) -> None:
    mask = np.asarray(nib.load(case.mask).dataobj)
    change(case.image, lambda image: np.where(mask, 3, 0))
    assert only(check_case(case)).fault == "is constant inside the brain mask (3)"


def test_empty_masks(case: Case) -> None:
    change(case.lesion, np.zeros_like)
    problem = only(check_case(case))
    assert (problem.severity, problem.path) == ("warning", str(case.lesion))
    change(case.mask, np.zeros_like)
    problem = check_case(case)[0]
    assert (problem.severity, problem.path) == ("error", str(case.mask))
    assert "is empty" in problem.fault


def test_masks_that_are_not_binary(case: Case) -> None:
    change(case.mask, lambda mask: mask * 255)
    assert check_case(case) == []
    change(case.mask, lambda mask: np.where(mask > 0, 1.0, 0.25))
    problem = only(check_case(case))
    assert problem.severity == "warning"
    assert problem.fault == "is not binary"


def test_lesion_labels_may_be_several_but_not_fractions(case: Case) -> None:
    change(case.lesion, lambda lesion: lesion * 4)
    assert check_case(case) == []
    change(case.lesion, lambda lesion: lesion * 0.2)
    assert only(check_case(case)).fault == "holds interpolated values"


def test_lesions_outside_the_brain(case: Case) -> None:
    lesion = np.asarray(nib.load(case.lesion).dataobj)
    change(case.mask, lambda mask: np.where((lesion > 0) & (np.arange(30) < 15), 0, mask))
    problem = only(check_case(case))
    count, total = int((lesion[:, :, :15] > 0).sum()), int((lesion > 0).sum())
    assert problem.severity == "warning"
    assert problem.fault == f"{count} of {total} lesion voxels lie outside the brain mask"
    change(case.mask, lambda mask: np.where(lesion > 0, 0, mask))
    assert only(check_case(case)).severity == "error"


def test_masks_that_lie_elsewhere(case: Case) -> None:
    image = nib.load(case.mask)
    affine = image.affine.copy()
    affine[2, 3] += 12
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), case.mask)
    first, second = check_case(case)
    assert (first.severity, first.path) == ("warning", str(case.mask))
    assert "12.0 mm from t1.nii.gz" in first.fault
    assert (second.severity, second.path) == ("warning", str(case.lesion))


def test_masks_in_other_axes(case: Case) -> None:
    image = nib.load(case.lesion)
    turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt("PSR"))
    nib.save(image.as_reoriented(turn), case.lesion)
    problem = only(check_case(case))
    assert (problem.severity, problem.path) == ("warning", str(case.lesion))
    assert problem.fault == "is stored in the axes PSR, mask.nii.gz in LAS"


def test_labels_and_lesion_masks_go_together(case: Case) -> None:
    assert "no lesion mask" in only(check_case(replace(case, lesion=None))).fault
    assert "has label 0, healthy, and a lesion mask" in only(check_case(replace(case, label=0))).fault
    assert "training scan with label 1" in only(check_case(replace(case, split="train"))).fault


def test_a_sound_tree_lacks_only_the_other_sets(paper_tree: PaperTree) -> None:
    data_dir = paper_tree()
    seen: list[tuple[int, int]] = []
    problem = only(check_data_dir(data_dir, "t1", fold=0, progress=lambda done, total: seen.append((done, total))))
    assert problem.severity == "warning"
    assert "WMH_test.csv" in problem.fault
    assert seen == [(number, 6) for number in range(1, 7)]


def test_leaks_and_duplicates_of_every_fold(paper_tree: PaperTree) -> None:
    data_dir = paper_tree()
    splits = data_dir / "Data/splits"
    rows = [split_row(f"IXI{n}-Guys-0899-T1", "Train/ixi", lesion=False) for n in ("219", "002", "219")]
    write_split(splits / "IXI_train_fold1.csv", rows)
    write_split(splits / "IXI_val_fold1.csv", rows[1:2])
    lesion_rows = [split_row("patient19-T1", "Test/MSLUB", lesion=True)] * 2
    write_split(splits / "MSLUB_test.csv", lesion_rows)
    found = check_data_dir(data_dir, "t1")
    faults = [problem.fault for problem in found if problem.path == str(splits)]
    assert "IXI IXI219 is listed 2 times in train (fold 1)" in faults
    assert "IXI IXI002 is in train and val (fold 1)" in faults
    assert faults.count("MSLUB patient19 is listed 2 times in test") == 1
    severities = {problem.fault.split(" (")[0]: problem.severity for problem in found}
    assert severities["IXI IXI219 is listed 2 times in train"] == "warning"
    assert severities["IXI IXI002 is in train and val"] == "error"
    assert [problem.severity for problem in found].count("error") == 1
    assert not any("fold 1" in problem.fault for problem in check_data_dir(data_dir, "t1", fold=0))


def test_missing_modality(paper_tree: PaperTree) -> None:
    data_dir = paper_tree(modalities=("t1", "t2"))
    (data_dir / "Data/Train/ixi/t2/IXI002-Guys-0899-T2.nii.gz").unlink()
    (data_dir / "Data/Test/MSLUB/t2/patient19-T2.nii.gz").unlink()
    found = check_data_dir(data_dir, "t2", 0)
    assert [problem.severity for problem in found] == ["warning", "warning", "error"]
    assert "1 subjects have no T2 scan (IXI002)" in found[0].fault
    assert found[2].path.endswith("MSLUB/t2/patient19-T2.nii.gz")


def test_lists_that_cannot_be_read_are_problems_too(paper_tree: PaperTree, tmp_path: Path) -> None:
    assert "no splits folder" in only(check_data_dir(tmp_path, "t1")).fault
    data_dir = paper_tree()
    assert "training needs it" in only(check_data_dir(data_dir, "t1", fold=3)).fault
    (data_dir / "Data/splits/IXI_train_fold1.csv").write_text("a,b\n1,2\n")
    found = check_data_dir(data_dir, "t1")
    assert [problem.severity for problem in found] == ["warning", "error"]
    assert "lacks the columns" in found[1].fault


def test_manifest(case: Case, tmp_path: Path) -> None:
    rows = ["subject,image,mask,seg,label,split"]
    rows += [f"patient19,t1.nii.gz,mask.nii.gz,seg.nii.gz,1,{split}" for split in ("val", "test")]
    (tmp_path / "clinic.csv").write_text("\n".join(rows) + "\n")
    problem = only(check_data_dir(tmp_path / "clinic.csv", "t1"))
    assert problem.fault == "clinic patient19 is in val and test"
    assert str(problem).startswith("error: ")
    assert "Remove its rows" in problem.remedy
    assert "leak_free" in problem.remedy


def test_processes_find_the_same(paper_tree: PaperTree) -> None:
    data_dir = paper_tree()
    cases = read_cases(data_dir, modality="t1")
    cases[1].image.write_bytes(b"")
    cases[4].mask.unlink()
    alone = check_files(cases)
    assert len(alone) == 2
    assert check_files(cases, num_workers=2) == alone


def test_copies_of_a_scan_are_one_scan(case: Case, tmp_path: Path) -> None:
    copy = tmp_path / "copy.nii.gz"
    shutil.copyfile(case.image, copy)
    lines = ["subject,image,mask,seg,label,split"]
    for subject, image, split in (("A", case.image, "train"), ("B", copy, "test"), ("C", "missing.nii", "test")):
        lines.append(f"{subject},{image},{case.mask},,0,{split}")
    (tmp_path / "scans.csv").write_text("\n".join(lines) + "\n")
    leak, missing = (p for p in check_data_dir(tmp_path / "scans.csv", "t1") if p.severity == "error")
    assert "A/B is in train and test, by copies of an image" in leak.fault
    assert "nothing but this check sees copies" in leak.remedy
    assert "no such file" in missing.fault
    copy.write_bytes(copy.read_bytes()[:-1] + b"x")  # as large, and another
    problems = check_data_dir(tmp_path / "scans.csv", "t1")
    assert not any("is in train and test" in problem.fault for problem in problems)
