"""What an evaluation keeps in memory of each case is little."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from brainuad.study import wide
from brainuad.study.progress import Progress
from brainuad.study.summary import lesion_wise, means, pooled
from brainuad.study.tables import COLUMNS, Pools, Rows, Subject, spelled_out

METRICS = ("average_precision", "chance", "dice", "true_positives", "false_positives", "false_negatives",
           "lesions", "lesions_found", "components", "components_confirmed")  # fmt: skip
SPACES, SCORES, THRESHOLDS = ("model", "native"), ("l1", "random"), ("", "validation", "healthy@0.01")


def rows_of(case: str, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    for score in SCORES:
        for space in SPACES:
            for threshold in THRESHOLDS:
                for metric in METRICS:
                    yield {
                        "set": "S", "case": case, "subject": case, "split": "test", "score": score, "space": space,
                        "threshold": threshold, "metric": metric, "value": rng.random(), "message": "",
                    }  # fmt: skip


def grown(work: Any) -> tuple[Any, int]:
    """Return what a function returns, and the bytes that are allocated for it afterwards."""
    tracemalloc.start()
    try:
        result = work()
        return result, tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def test_a_row_takes_some_thirty_bytes() -> None:
    def gather() -> Rows:
        rng, found = np.random.default_rng(0), Rows()
        for number in range(300):
            found.add(rows_of(f"p{number}", rng))
        return found

    gathered, taken = grown(gather)
    table = gathered.table()
    assert len(table) == 300 * 120
    assert taken / len(table) < 40
    assert table.memory_usage(deep=True).sum() / len(table) < 25


def test_a_table_of_categories_is_the_plain_table() -> None:
    rng = np.random.default_rng(1)
    rows = [row for case in ("b", "a", "007", "NA") for row in rows_of(case, rng)]
    rows += [{**row, "set": "A", "split": "val"} for row in rows_of("b", rng)]
    rows.append({**rows[0], "case": "c", "subject": "c", "metric": "failed", "message": "c.nii.gz: gone"})
    plain = pd.DataFrame(rows, columns=list(COLUMNS))
    plain = plain.sort_values(["set", "split", "case"], ignore_index=True, kind="stable")
    gathered = Rows()
    gathered.add(rows)
    table = gathered.table()
    pd.testing.assert_frame_equal(spelled_out(table), plain)
    assert table.to_csv(index=False) == plain.to_csv(index=False)
    subjects = {(row["set"], row["split"], row["case"]): Subject(row["case"], True, False, None, ()) for row in rows}
    pd.testing.assert_frame_equal(means(table, subjects), means(plain, subjects))
    assert pooled(table, Pools()) == pooled(plain, Pools())
    assert lesion_wise(table) == lesion_wise(plain)
    for split in ("test", "val", None):
        pd.testing.assert_frame_equal(wide(table, split=split), wide(plain, split=split))


def test_a_row_a_case_and_score() -> None:
    rows = list(rows_of("a", np.random.default_rng(2))) + list(rows_of("b", np.random.default_rng(3)))
    table = wide(pd.DataFrame(rows), space="native")
    assert list(zip(table["case"], table["score"], strict=True)) == [(case, score) for case in "ab" for score in SCORES]
    value = next(
        row["value"] for row in rows
        if (row["case"], row["score"], row["space"]) == ("b", "random", "native")
        and (row["metric"], row["threshold"]) == ("dice", "validation")
    )  # fmt: skip
    assert table["dice@validation"].iloc[-1] == value
    assert "dice" in table


def test_progress_keeps_values_on_disk(tmp_path: Path) -> None:
    value = {"measures": [float(number) for number in range(2000)]}
    progress = Progress(tmp_path / "progress.jsonl")

    def put() -> None:
        for number in range(200):
            progress.put(f"{number:032}", value | {"number": number})

    _, taken = grown(put)
    assert taken / 200 < 1000
    for known in (progress, Progress(tmp_path / "progress.jsonl"), Progress(tmp_path / "progress.jsonl", 1)):
        assert known.get(f"{150:032}") == value | {"number": 150}
        assert f"{150:032}" in known
        assert known.get("none") is None
        assert "none" not in known


def test_of_two_values_the_later_counts(tmp_path: Path) -> None:
    progress = Progress(tmp_path / "progress.jsonl")
    progress.put("key", 1)
    progress.put("key", 2)
    assert progress.get("key") == 2
    assert Progress(progress.path).get("key") == 2


@pytest.mark.parametrize("rest", [b"", b'{"key": "first", "val', b"\xff\xfe\x00", b'[1, 2]\n"text"\n'])
def test_lines_that_are_no_entry_are_passed_over(tmp_path: Path, rest: bytes) -> None:
    path = tmp_path / "progress.jsonl"
    path.write_bytes(b'\n{"key": "whole", "value": "\xc3\xa9"}\n' + rest)
    progress = Progress(path)
    assert progress.get("whole") == "é"
    assert "first" not in progress
    progress.put("first", 3)
    assert Progress(path).get("first") == 3


def test_an_entry_that_was_replaced_is_not_known(tmp_path: Path) -> None:
    progress = Progress(tmp_path / "progress.jsonl")
    progress.put("mine", 1)
    progress.path.write_text("\n" + json.dumps({"key": "other", "value": 2}) + "\n")
    assert progress.get("mine") is None
