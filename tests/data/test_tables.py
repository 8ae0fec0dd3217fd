"""Reading and writing the CSV files that list scans."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainuad.data.tables import parse_age, parse_label, read_table
from brainuad.errors import InputError


def test_values_are_stripped_and_missing_ones_empty(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a, b ,c\n 1,NaN\n\n2, x ,None,more\n")
    assert read_table(path, required={"a", "b"}) == [
        ({"a": "1", "b": "", "c": ""}, f"{path} line 2"),
        ({"a": "2", "b": "x", "c": ""}, f"{path} line 4"),
    ]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("\ufeffsubject;image\r\np1;a.nii\r\np2;b.nii\r\n", "utf-8"),
        ("subject\timage\np1\ta.nii\np2\tb.nii\n", "utf-16"),
        ("subject,image\np1,a.nii\n,\np2,b.nii\n , \n", "utf-8"),
    ],
)
def test_a_table_saved_by_a_spreadsheet_is_read(tmp_path: Path, text: str, encoding: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(text.encode(encoding))
    rows = [row for row, _ in read_table(path, required={"subject", "image"})]
    assert rows == [{"subject": "p1", "image": "a.nii"}, {"subject": "p2", "image": "b.nii"}]


def test_names_that_windows_wrote_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("subject;image\r\nMüller;a.nii\r\n".encode("cp1252"))
    assert [row for row, _ in read_table(path, required={"subject"})] == [{"subject": "Müller", "image": "a.nii"}]
    path.write_bytes(b"\x93NUMPY\0\0")
    with pytest.raises(InputError, match="cannot be read as text"):
        read_table(path, required={"subject"})


def test_a_subject_may_be_called_na(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("subject,age\nNA,NA\n")
    assert [row for row, _ in read_table(path, required={"subject"})] == [{"subject": "NA", "age": ""}]


def test_a_column_that_is_there_twice_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("subject,image,image\np1,a.nii,b.nii\n")
    with pytest.raises(InputError, match="has the column image twice"):
        read_table(path, required={"subject"})


@given(st.integers(-(10**6), 10**6))
def test_labels_are_integers_in_any_spelling(label: int) -> None:
    assert parse_label(str(label), "") == parse_label(f"{label}.0", "") == label
    assert parse_label("", "") == 0


@pytest.mark.parametrize(("text", "age"), [("41.5", 41.5), ("", None), ("inf", None), ("old", None)])
def test_ages(text: str, age: float | None) -> None:
    assert parse_age(text) == age
