"""People in more than one split, and splits without them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from paper_layout import split_row, write_split

from brainuad.data.cohort import SPLITS, Case, manifest_cases, read_cases
from brainuad.data.leaks import People, find_leaks, leak_free, people, scans_of_others

PaperTree = Callable[..., Path]


def test_leaks_of_the_published_kind(paper_tree: PaperTree) -> None:
    data_dir = paper_tree()
    splits = data_dir / "Data/splits"
    # the same subjects under other spellings, and one row twice
    train = [split_row(f"IXI{n}-Guys-0899-T1", "Train/ixi", lesion=False) for n in ("219", "002", "002", "552", "035")]
    for row in train:
        row["img_name"] = f"{row['img_name']}_brain.nii.gz"
    write_split(splits / "IXI_train_fold0.csv", train)
    cases = read_cases(data_dir, modality="t1")
    assert sorted(map(str, find_leaks(cases))) == [
        "IXI IXI002 is listed 2 times in train",
        "IXI IXI035 is in train and val",
        "IXI IXI552 is in train and test",
    ]
    assert [leak.subject for leak in find_leaks(cases) if leak.duplicated] == ["IXI002"]
    kept = leak_free(cases)
    assert find_leaks(kept) == []
    assert [(case.subject, case.split) for case in kept if case.dataset == "IXI"] == [
        ("IXI219", "train"),
        ("IXI002", "train"),
        ("IXI035", "train"),
        ("IXI552", "test"),
    ]


def manifest(folder: Path, rows: list[str]) -> list[Case]:
    """Cases of a manifest with the columns subject, image, split and dataset."""
    lines = ["subject,image,split,dataset,mask,seg,label", *(f"{row},m.nii,,0" for row in rows)]
    (folder / "scans.csv").write_text("\n".join(lines) + "\n")
    return manifest_cases(folder / "scans.csv")


def test_manifests_name_a_person_alike_in_all_data_sets(tmp_path: Path) -> None:
    cases = manifest(tmp_path, ["P1,a.nii,train,site A", "P1,b.nii,test,site B", "P2,c.nii,train,site A"])
    assert list(map(str, find_leaks(cases))) == ["site A/site B P1 is in train and test"]
    assert [(case.subject, case.split) for case in leak_free(cases)] == [("P1", "test"), ("P2", "train")]
    # the data sets of the paper number their subjects each for itself
    assert find_leaks([replace(case, named_across=False) for case in cases]) == []


def test_one_image_under_two_names_is_one_person(tmp_path: Path) -> None:
    rows = ["P1,x/../a.nii,train,A", "P1,b.nii,train,A", "P2,c.nii,train,A", "Q,a.nii,test,B"]
    cases = manifest(tmp_path, rows)
    assert list(map(str, find_leaks(cases))) == ["A/B P1/Q is in train and test"]
    kept = leak_free(cases)
    assert [case.subject for case in kept] == ["P2", "Q"], "b.nii is of the test person too"


def test_a_person_under_two_names_within_the_test_split_is_no_leak(tmp_path: Path) -> None:
    rows = ["IXI202,a.nii,test,healthy", "IXI202_stroke,b.nii,test,stroke", "IXI202_again,a.nii,test,healthy"]
    cases = manifest(tmp_path, rows)
    assert find_leaks(cases) == []
    assert leak_free(cases) == cases
    demo = manifest_cases(files("brainuad.assets") / "demo" / "manifest.csv")
    assert find_leaks(demo) == []
    assert leak_free(demo) == demo
    assert len(demo) == 14


def a_case(subject: str, dataset: str, split: str, scan: int) -> Case:
    return Case(subject, dataset, split, Path(f"{dataset}{subject}_{scan}.nii"), Path("m.nii"), None, 0, None)


def a_row(subject: str, dataset: str, split: str, scan: int) -> Case:
    return Case(subject, dataset, split, Path(f"{scan}.nii"), Path("m.nii"), None, 0, None, named_across=True)


@given(
    st.lists(
        st.builds(
            a_row, st.sampled_from("abcd"), st.sampled_from(["A", "B"]), st.sampled_from(SPLITS), st.integers(0, 6)
        )
    )
)
def test_leak_free_manifests_share_no_name_and_no_image(cases: list[Case]) -> None:
    kept = leak_free(cases)
    assert find_leaks(kept) == []
    assert leak_free(kept) == kept
    for key in (lambda case: case.subject, lambda case: case.image):
        places = {(key(case), case.split) for case in kept}
        assert len(places) == len({key(case) for case in kept})
    assert {case for case in kept if case.split == "test"} == {case for case in cases if case.split == "test"}


@given(
    st.lists(
        st.builds(
            a_case, st.sampled_from("abcd"), st.sampled_from(["IXI", "WMH"]), st.sampled_from(SPLITS), st.integers(0, 1)
        )
    )
)
def test_leak_free_leaves_no_leak_and_loses_no_subject(cases: list[Case]) -> None:
    kept = leak_free(cases)
    assert find_leaks(kept) == []
    assert leak_free(kept) == kept
    positions = [cases.index(case) for case in kept]
    assert positions == sorted(positions)
    assert {(case.dataset, case.subject) for case in kept} == {(case.dataset, case.subject) for case in cases}
    assert {case for case in kept if case.split == "test"} == {case for case in cases if case.split == "test"}


def test_a_person_is_known_by_names_and_images(tmp_path: Path) -> None:
    rows = ["P1,a.nii,val,A", "P2,b.nii,val,A", "P3,./a.nii,val,B", "P3,c.nii,val,B", "P4,d.nii,val,A"]
    cases = manifest(tmp_path, rows)
    assert people(cases) == [0, 1, 0, 0, 4]
    assert scans_of_others(cases) == 2
    assert scans_of_others(cases[:1]) == scans_of_others([]) == 0


def test_links_are_the_scan_that_they_lead_to(tmp_path: Path) -> None:
    (tmp_path / "a.nii").touch()
    (tmp_path / "link.nii").symlink_to("a.nii")
    (tmp_path / "folder").symlink_to(".")
    for other in ("link.nii", "folder/a.nii"):
        cases = manifest(tmp_path, ["A,a.nii,train,S", f"B,{other},test,S"])
        assert list(map(str, find_leaks(cases))) == ["S A/B is in train and test"]
        assert [case.subject for case in leak_free(cases)] == ["B"]
        twice = manifest(tmp_path, ["A,a.nii,train,S", f"A,{other},train,S"])
        assert [str(leak) for leak in find_leaks(twice)] == ["S A is listed 2 times in train"]
        assert len(leak_free(twice)) == 1


@given(
    st.lists(st.builds(a_row, st.sampled_from("abcd"), st.sampled_from(["A", "B"]), st.just("val"), st.integers(0, 5))),
    st.builds(a_row, st.sampled_from("abcde"), st.just("C"), st.just("test"), st.integers(0, 7)),
)
def test_a_persons_scans_are_those_that_are_of_one_person_with_it(cases: list[Case], case: Case) -> None:
    whose, *others = people([case, *cases])
    assert People(cases).own(case) == tuple(i for i, person in enumerate(others) if person == whose)
