"""Reading and writing the CSV files that list scans."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainuad.data.tables import parse_age, parse_label, read_table


def test_values_are_stripped_and_missing_ones_empty(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a, b ,c\n 1,NaN\n\n2, x ,None,more\n")
    assert read_table(path, required={"a", "b"}) == [
        ({"a": "1", "b": "", "c": ""}, f"{path} line 2"),
        ({"a": "2", "b": "x", "c": ""}, f"{path} line 4"),
    ]


@given(st.integers(-(10**6), 10**6))
def test_labels_are_integers_in_any_spelling(label: int) -> None:
    assert parse_label(str(label), "") == parse_label(f"{label}.0", "") == label
    assert parse_label("", "") == 0


@pytest.mark.parametrize(("text", "age"), [("41.5", 41.5), ("", None), ("inf", None), ("old", None)])
def test_ages(text: str, age: float | None) -> None:
    assert parse_age(text) == age
