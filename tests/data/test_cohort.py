"""Cases from both forms of the paper's tree and from a manifest."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from brainuad.data.cohort import Case, image_path, manifest_cases, paper_folds, read_cases, subject_of
from brainuad.data.tables import SPLIT_COLUMNS
from brainuad.errors import InputError

PaperTree = Callable[..., Path]


def rewrite(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("level", ["Data", "."])
def test_both_forms_of_the_tree(paper_tree: PaperTree, level: str) -> None:
    data_dir = paper_tree(level=level)
    cases = read_cases(data_dir, modality="t1")
    assert [(case.dataset, case.split, case.subject) for case in cases] == [
        ("IXI", "train", "IXI219"),
        ("IXI", "train", "IXI002"),
        ("IXI", "val", "IXI035"),
        ("IXI", "test", "IXI552"),
        ("MSLUB", "val", "patient07"),
        ("MSLUB", "test", "patient19"),
    ]
    for case in cases:
        assert case.image.is_file()
        assert case.mask.is_file()
        assert case.label == (case.dataset == "MSLUB")
    assert cases[0].lesion is None
    assert cases[0].age == 41.5
    assert cases[-1].age is None
    assert cases[-1].lesion is not None
    assert cases[-1].lesion.is_file()
    assert cases[-1].image == data_dir / level / "Test/MSLUB/t1/patient19-T1.nii.gz"


def test_absent_test_sets_are_left_out_and_said_so(paper_tree: PaperTree, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        read_cases(paper_tree(), modality="t1")
    (record,) = caplog.records
    for name in ("Brats21_val.csv", "Brats21_test.csv", "ATLAS_v2_val.csv", "WMH_test.csv"):
        assert name in record.getMessage()
    assert "MSLUB" not in record.getMessage()


def test_extra_columns_an_index_and_a_byte_order_mark_do_no_harm(paper_tree: PaperTree) -> None:
    data_dir = paper_tree()
    plain = read_cases(data_dir, modality="t1")
    for path in (data_dir / "Data/splits").glob("*.csv"):
        first, *rest = path.read_text().splitlines()
        rows = [f"{number},{row},Guys" for number, row in enumerate(rest)]
        path.write_text("\n".join(["\ufeff," + first + ",site", *rows, ""]), encoding="utf-8")
    assert read_cases(data_dir, modality="t1") == plain


def test_t2_takes_the_files_that_exist(paper_tree: PaperTree, caplog: pytest.LogCaptureFixture) -> None:
    data_dir = paper_tree(modalities=("t1", "t2"))
    (data_dir / "Data/Train/ixi/t2/IXI002-Guys-0899-T2.nii.gz").unlink()
    with caplog.at_level(logging.WARNING):
        cases = read_cases(data_dir, modality="t2")
    assert [case.subject for case in cases] == ["IXI219", "IXI035", "IXI552", "patient07", "patient19"]
    assert all(case.image.is_file() and case.image.parent.name == "t2" for case in cases)
    assert cases[0].mask.name == "IXI219-Guys-0899-T1.nii.gz"
    assert "IXI002" in caplog.text
    assert "ATLAS" not in caplog.text


def test_t2_listing_is_honoured_where_there_is_one(paper_tree: PaperTree) -> None:
    data_dir = paper_tree(modalities=("t1", "t2"))
    listed = ["IXI002-Guys-0899-T2.nii.gz", "IXI035-IOP-0873-T2.nii.gz", "IXI552-Guys-1113-T2.nii.gz"]
    rewrite(data_dir / "Data/splits/avail_t2.csv", ",0\n" + "".join(f"{i},{n}\n" for i, n in enumerate(listed)))
    subjects = [case.subject for case in read_cases(data_dir, modality="t2") if case.dataset == "IXI"]
    assert subjects == ["IXI002", "IXI035", "IXI552"]


def test_t2_without_any_t2_scan(paper_tree: PaperTree) -> None:
    with pytest.raises(InputError, match=r"IXI_train_fold0.csv: none of its subjects has a T2 scan.*ixi/t2"):
        read_cases(paper_tree(), modality="t2")


@pytest.mark.parametrize(
    ("t1", "t2"),
    [
        ("/Train/ixi/t1/IXI219-Guys-0899-T1.nii.gz", "/Train/ixi/t2/IXI219-Guys-0899-T2.nii.gz"),
        ("/Test/Brats21/t1/BraTS2021_00001_t1.nii.gz", "/Test/Brats21/t2/BraTS2021_00001_t2.nii.gz"),
        ("/Test/MSLUB/T1/patient01_T1W.nii.gz", "/Test/MSLUB/T2/patient01_T2W.nii.gz"),
        ("/Test1/t1/subject1_t1.nii.gz", "/Test1/t2/subject1_t2.nii.gz"),
        ("/Test/x/t1/patient1.nii.gz", "/Test/x/t2/patient1.nii.gz"),
    ],
)
def test_path_of_another_image(t1: str, t2: str) -> None:
    assert image_path(t1, "t2") == t2
    assert image_path(t1, "t1") == t1


def test_path_of_a_flair() -> None:
    assert image_path("/Test/MSLUB/T1/patient01_T1W.nii.gz", "flair") == "/Test/MSLUB/FLAIR/patient01_FLAIRW.nii.gz"
    assert image_path("/Test/WMH/t1/site_1_t1.nii.gz", "flair") == "/Test/WMH/flair/site_1_flair.nii.gz"


@pytest.mark.parametrize(
    ("path", "name", "dataset", "subject"),
    [
        ("/Train/ixi/t1/IXI219-Guys-0899-T1.nii.gz", "IXI219-Guys-0899-T1", "IXI", "IXI219"),
        ("/Train/ixi/t1/IXI219-Guys-0899-T1_brain.nii.gz", "IXI219", "IXI", "IXI219"),
        ("/Train/ixi/t1/ixi219_t1.nii", "whatever", "IXI", "IXI219"),
        ("/Train/ixi/t1/000.nii.gz", "IXI219-Guys-0899-T1.nii.gz", "IXI", "IXI219"),
        ("/Train/ixi/t1/healthy12-T1.nii.gz", "healthy12", "IXI", "healthy12"),
        ("/Test/Brats21/t1/BraTS2021_00001_t1.nii.gz", "x", "Brats21", "BraTS2021_00001"),
        ("/Test/MSLUB/t2/patient07_T2W.nii.gz", "x", "MSLUB", "patient07"),
        ("/Test/MSLUB/t1/IXI219.nii.gz", "x", "MSLUB", "IXI219"),
    ],
)
def test_subject_identity(path: str, name: str, dataset: str, subject: str) -> None:
    assert subject_of(path, name, dataset) == subject


def test_wrong_data_dir_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no splits folder.*Data/splits and .*splits"):
        read_cases(tmp_path, modality="t1")
    with pytest.raises(InputError, match="is no folder"):
        read_cases(tmp_path / "absent", modality="t1")


def test_absent_training_split_is_an_error_only_for_training(paper_tree: PaperTree) -> None:
    data_dir = paper_tree()
    with pytest.raises(InputError, match=r"IXI_train_fold3.csv: missing.*Folds present: 0"):
        read_cases(data_dir, modality="t1", fold=3)
    cases = read_cases(data_dir, modality="t1", fold=3, training=False)
    assert {case.split for case in cases if case.dataset == "IXI"} == {"test"}
    for path in (data_dir / "Data/splits").glob("*.csv"):
        path.unlink()
    with pytest.raises(InputError, match="At least one is needed"):
        read_cases(data_dir, modality="t1", training=False)


def test_folds_present(paper_tree: PaperTree) -> None:
    data_dir = paper_tree()
    splits = data_dir / "Data/splits"
    shutil.copyfile(splits / "IXI_train_fold0.csv", splits / "IXI_train_fold4.csv")
    assert paper_folds(data_dir) == [0, 4]


def test_unknown_modality(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'pd' is unknown"):
        read_cases(tmp_path, modality="pd")


HEADER = ",".join(SPLIT_COLUMNS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lacks the columns .*It has none"),
        (HEADER + "\n", "has no rows"),
        ("img_name,age,label,path\nIXI219,3,0,/Train/x\n", "lacks the columns img_path, mask_path.*It has.*path"),
        (HEADER + "\nIXI219,3,0,/../../etc/passwd,/Train/m.nii,\n", "line 2: path '/../../etc/passwd' leads out"),
        (HEADER + "\nIXI219,3,0,/Train/a.nii,,\n", "line 2: an image or mask path is empty"),
        (HEADER + "\n\nIXI219,3,sick,/Train/a.nii,/Train/m.nii,\n", "line 3: label 'sick' is no number"),
        (HEADER + "\n" + '"IXI219' + "x" * 140_000, "is no CSV"),
    ],
)
def test_split_files_that_make_no_sense(paper_tree: PaperTree, text: str, message: str) -> None:
    data_dir = paper_tree()
    rewrite(data_dir / "Data/splits/IXI_train_fold0.csv", text)
    with pytest.raises(InputError, match=message) as raised:
        read_cases(data_dir, modality="t1")
    assert "IXI_train_fold0.csv" in raised.value.subject


def test_binary_file_as_split(paper_tree: PaperTree) -> None:
    data_dir = paper_tree()
    (data_dir / "Data/splits/IXI_test.csv").write_bytes(b"PK\x03\x04\xff\xfe")
    with pytest.raises(InputError, match=r"IXI_test.csv: cannot be read as text"):
        read_cases(data_dir, modality="t1")


MANIFEST = """subject,image,mask,seg,label,split,age
007,scans/007.nii.gz,masks/007.nii.gz,,0,train,30
008,scans/008.nii.gz,masks/008.nii.gz,nan,0.0,val,unknown
009,/elsewhere/009.nii.gz,masks/009.nii.gz,seg/009.nii.gz,1,test,
"""


def test_manifest(tmp_path: Path) -> None:
    path = tmp_path / "clinic.csv"
    rewrite(path, MANIFEST)
    cases = read_cases(path, "t1")
    assert cases == manifest_cases(path)
    assert cases[0] == Case(
        subject="007",
        dataset="clinic",
        split="train",
        image=tmp_path / "scans/007.nii.gz",
        mask=tmp_path / "masks/007.nii.gz",
        lesion=None,
        label=0,
        age=30.0,
        named_across=True,
    )
    assert (cases[1].lesion, cases[1].age, cases[1].label) == (None, None, 0)
    assert cases[2].image == Path("/elsewhere/009.nii.gz")
    assert cases[2].lesion == tmp_path / "seg/009.nii.gz"


def test_further_columns_of_a_manifest_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "clinic.csv"
    path.write_text(
        "subject,image,mask,seg,label,split,age,site,sex\n"
        "1,a.nii,m.nii,,0,test,40,Leeds,F\n2,b.nii,m.nii,,0,test,41,,nan\n"
    )
    first, second = manifest_cases(path)
    assert first.extra == (("site", "Leeds"), ("sex", "F"))
    assert second.extra == ()
    assert len({first, second}) == 2, "cases are keys"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",train,", ",training,", "line 2: split 'training' is unknown"),
        ("masks/008.nii.gz", "", "line 3: column mask is empty"),
        ("subject,", "patient,", "lacks the columns subject"),
    ],
)
def test_manifests_that_make_no_sense(tmp_path: Path, old: str, new: str, message: str) -> None:
    rewrite(tmp_path / "clinic.csv", MANIFEST.replace(old, new))
    with pytest.raises(InputError, match=message):
        manifest_cases(tmp_path / "clinic.csv")
    with pytest.raises(InputError, match="no such file"):
        manifest_cases(tmp_path / "absent.csv")


def test_a_folder_may_be_named_by_text(paper_tree: PaperTree) -> None:
    data_dir = paper_tree()
    assert read_cases(str(data_dir), "t1") == read_cases(data_dir, "t1")


def test_a_lesion_mask_speaks_where_the_label_is_silent(tmp_path: Path) -> None:
    lines = [
        "subject,image,mask,seg,label,split",
        "A,a.nii,m.nii,l.nii,,train",
        "B,b.nii,m.nii,,,train",
        "C,c.nii,m.nii,l.nii,0,train",
        "D,d.nii,m.nii,,1,train",
    ]
    (tmp_path / "scans.csv").write_text("\n".join(lines) + "\n")
    cases = manifest_cases(tmp_path / "scans.csv")
    assert [case.label for case in cases] == [1, 0, 0, 1]
    assert [case.healthy for case in cases] == [False, True, False, False]


def test_a_split_without_rows_counts_as_missing(paper_tree: PaperTree, caplog: pytest.LogCaptureFixture) -> None:
    data_dir = paper_tree()
    splits = data_dir / "Data" / "splits"
    (splits / "WMH_val.csv").unlink(missing_ok=True)
    expected = read_cases(data_dir, modality="t1", fold=0)
    heading = (splits / "IXI_test.csv").read_text().splitlines()[0]
    for text in (heading + "\n", heading + "\n,,,,,\n", ""):
        (splits / "WMH_val.csv").write_text(text)
        caplog.clear()
        assert read_cases(data_dir, modality="t1", fold=0) == expected
        assert "WMH_val.csv" in caplog.text
    (splits / "IXI_val_fold0.csv").write_text(heading + "\n")
    with pytest.raises(InputError, match=r"IXI_val_fold0\.csv: has no rows"):
        read_cases(data_dir, modality="t1", fold=0)
