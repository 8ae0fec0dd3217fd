"""The tables of scored scans, whatever else touches them."""

from __future__ import annotations

import json
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest
from scan_tables import table

from brainuad.files import locked
from brainuad.scan.run import Settings, score_scans
from brainuad.scan.table import COLUMNS, FINDING_COLUMNS, write_table


def test_the_tables_say_what_the_sidecars_say(scans, scored, detector, tmp_path):
    rows = score_scans(scans, detector, tmp_path / "out", Settings())
    assert [row["name"] for row in rows] == ["a", "b", "c"]
    written = table(tmp_path / "out")
    assert tuple(written[0]) == COLUMNS
    findings = table(tmp_path / "out", "findings.csv")
    assert tuple(findings[0]) == FINDING_COLUMNS
    for row, again in zip(rows, written, strict=True):
        sidecar = json.loads((tmp_path / "out" / f"{row['name']}.json").read_text())
        assert {name: str(value) for name, value in row.items()} == again
        assert row["findings"] == len(sidecar["findings"])
        assert row["lesion_ml"] == pytest.approx(sum(f["ml"] for f in sidecar["findings"]), abs=1e-3)
        assert row["score"] == pytest.approx(sidecar["score"]["value"], abs=1e-5)
        listed = [line for line in findings if line["name"] == row["name"]]
        assert [line["label"] for line in listed] == [str(f["label"]) for f in sidecar["findings"]]
        for line, finding in zip(listed, sidecar["findings"], strict=True):
            assert (line["region"], float(line["ml"])) == (finding["region"], finding["ml"])
            assert float(line["mni_x"]) == pytest.approx(finding["mni_mm"][0], abs=0.051)
    assert findings
    about = json.loads((tmp_path / "out" / "run.json").read_text())
    assert about["counts"] == {"done": 3, "skipped": 0, "failed": 0}
    assert [entry["name"] for entry in about["inputs"]] == ["a", "b", "c"]
    assert about["model"]["fingerprint"] == detector.fingerprint


def test_rows_of_other_runs_stay(scans, scored, detector, tmp_path):
    score_scans(scans[:2], detector, tmp_path / "out", Settings())
    score_scans(scans[2:], detector, tmp_path / "out", Settings())
    assert [row["name"] for row in table(tmp_path / "out")] == ["a", "b", "c"]


def saved_by_a_spreadsheet(path: Path) -> None:
    path.write_bytes(path.read_text().replace(",", ";").replace("\n", "\r\n").encode("utf-8-sig"))


def saved_as_utf16(path: Path) -> None:
    path.write_bytes(path.read_text().replace(",", "\t").encode("utf-16"))


@pytest.mark.parametrize(
    "touch", [saved_by_a_spreadsheet, saved_as_utf16, Path.unlink, lambda path: path.write_bytes(b"\x00\xff")]
)
def test_a_table_that_others_touched_is_made_again(scans, scored, detector, tmp_path, touch):
    out = tmp_path / "out"
    scans[1].source.write_bytes(scans[1].source.read_bytes()[:5000])
    score_scans(scans[:2], detector, out, Settings())
    before = table(out)
    touch(out / "scores.csv")
    score_scans(scans[2:], detector, out, Settings())
    assert table(out)[:2] == before
    assert [(row["name"], row["status"]) for row in table(out)] == [("a", "done"), ("b", "failed"), ("c", "done")]


def test_a_failed_scan_has_a_sidecar_until_it_is_scored(scans, scored, detector, tmp_path):
    out, sound = tmp_path / "out", scans[1].source.read_bytes()
    scans[1].source.write_bytes(sound[:5000])
    score_scans(scans, detector, out, Settings())
    failed = json.loads((out / "failed" / "b.json").read_text())
    assert (failed["name"], failed["status"]) == ("b", "failed")
    assert "truncated or damaged" in failed["message"]
    scans[1].source.write_bytes(sound)
    score_scans(scans[1:2], detector, out, Settings())
    assert not (out / "failed").exists()
    assert [row["status"] for row in table(out)] == ["done"] * 3


def test_a_row_without_sidecar_stays_in_a_table_that_windows_wrote(scans, scored, detector, tmp_path):
    out = tmp_path / "out"
    renamed = replace(scans[0], name="Müller")
    score_scans([renamed], detector, out, Settings())
    (out / "Müller.json").unlink()
    (out / "scores.csv").write_bytes((out / "scores.csv").read_text(encoding="utf-8").encode("cp1252"))
    score_scans(scans[1:], detector, out, Settings())
    assert [row["name"] for row in table(out)] == ["Müller", "b", "c"]


def test_a_row_without_sidecar_stays(scans, scored, detector, tmp_path):
    """As of scans that failed with a version that wrote none."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "scores.csv").write_text("name,status,message\nold,failed,was not there\n")
    score_scans(scans[:1], detector, out, Settings())
    assert [(row["name"], row["message"]) for row in table(out)] == [("old", "was not there"), ("a", "")]


def test_a_table_waits_for_another_process(scans, scored, detector, tmp_path):
    """What another process wrote meanwhile is in it."""
    out = tmp_path / "out"
    score_scans(scans[:1], detector, out, Settings())
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pool.submit(write_table, out, []).result()  # has all it needs in memory
        with locked(out / "scores.csv"):
            waiting = pool.submit(write_table, out, [])
            time.sleep(0.5)
            assert not waiting.done()
            sidecar = json.loads((out / "a.json").read_text())
            (out / "z.json").write_text(json.dumps(sidecar | {"name": "z"}))
        waiting.result()
    assert [row["name"] for row in table(out)] == ["a", "z"]
