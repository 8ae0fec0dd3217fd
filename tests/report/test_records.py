import json

import pytest
from scored_folder import patient, write_run, write_scan

from brainuad.errors import InputError
from brainuad.report.records import read_records


def test_everything_in_the_folder_becomes_a_row(cohort):
    records = read_records(cohort)
    assert [row.status for row in records.rows] == ["done", "done", "done", "failed"]
    first = records.rows[0]
    entry = json.loads((cohort / "patient19_t1.json").read_text())
    assert len(first.record.findings) == len(entry["findings"]) > 1
    assert first.record.lesion_ml == pytest.approx(sum(finding["ml"] for finding in entry["findings"]))
    assert first.scored.outputs["anomaly"] == cohort / "patient19_t1_anomaly.nii.gz"
    assert first.record.calibration.interval == (0.38, 0.43)
    assert records.rows[2].record.calibration is None
    assert "truncated" in records.rows[3].message
    assert len(records.healthy) == 15
    assert records.notes == []


def test_sidecars_are_found_in_subfolders_and_without_tables(tmp_path):
    out = tmp_path / "out"
    write_scan(out / "sub-01" / "anat", "sub-01_T1w", *patient())
    (out / "sub-01" / "anat" / "sub-01_space.json").write_text('{"SpatialReference": "orig"}')
    (out / "dataset_description.json").write_text('{"Name": "brainuad"}')
    assert [row.name for row in read_records(out).rows] == ["sub-01_T1w"]
    write_scan(out / "sub-02", "run", *patient())  # only the run's own files are told by their names
    assert [row.name for row in read_records(out).rows] == ["run", "sub-01_T1w"]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"findings": [{"label": 1}]}, "findings.0.voxels: Field required"),
        ({"findings": 3}, "findings: Input should be a valid list"),
        ({"score": {"value": "high", "percentile": None}}, "score.value: Input should be a valid number"),
        ({"score": {"value": float("nan"), "percentile": None}}, "score.value: Input should be a finite number"),
        ({"calibration": {"scans": 1e999}}, "calibration.scans: Input should be a finite number"),
        (
            {
                "calibration": {
                    "scans": 9,
                    "fraction": 0.01,
                    "threshold": 0.4,
                    "first_colour": 0.5,
                    "full_colour": 0.4,
                    "interval": None,
                }
            },
            "ends at 0.4",
        ),
        ({"scan": None}, "scan: Input should be a dictionary"),
        ({"outputs": ["a"]}, "outputs: Input should be a valid dictionary"),
    ],
)
def test_a_damaged_sidecar_is_a_damaged_scan(scored, change, fault):
    path = scored / "patient19_t1.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    (row,) = read_records(scored).rows
    assert (row.name, row.status, row.scored) == ("patient19_t1", "damaged", None)
    assert fault in row.message


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"", b"[" * 100_000])
def test_an_unreadable_sidecar_is_a_damaged_scan(scored, content):
    (scored / "patient19_t1.json").write_bytes(content)
    (row,) = read_records(scored).rows
    assert (row.name, row.status) == ("patient19_t1", "damaged")
    assert "patient19_t1.json cannot be read" in row.message


def test_a_scan_whose_sidecar_is_gone_stays_listed(scored):
    (scored / "patient19_t1.json").unlink()
    (row,) = read_records(scored).rows
    assert (row.status, row.message) == ("damaged", "its JSON file is gone: score it again")


def test_two_scans_of_one_name_are_both_listed(scored):
    write_scan(scored / "b", "patient19_t1", *patient())
    assert [row.name for row in read_records(scored).rows] == ["patient19_t1", "patient19_t1"]


def test_a_damaged_table_or_run_is_noted(scored):
    (scored / "scores.csv").write_bytes(b"name,status\n\xff\xfe")
    (scored / "run.json").write_text("[]")
    records = read_records(scored)
    assert [row.status for row in records.rows] == ["done"]
    assert any("scores.csv" in note for note in records.notes)
    assert any("run.json" in note for note in records.notes)


@pytest.mark.parametrize("content", ["5", "null", '"scan"', "[]", "{}"])
def test_other_json_is_no_scan(scored, content):
    for path in (scored / "other.json", scored / "below" / "run.json"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    assert [row.name for row in read_records(scored).rows] == ["patient19_t1"]


def test_outputs_never_lead_out_of_the_folder(scored):
    path = scored / "patient19_t1.json"
    sidecar = json.loads(path.read_text())
    sidecar["outputs"]["montage"] = "../../../etc/passwd"
    path.write_text(json.dumps(sidecar))
    (row,) = read_records(scored).rows
    assert row.scored.outputs["montage"] == scored / "passwd"


def test_a_folder_without_scans_is_one_clear_error(tmp_path):
    with pytest.raises(InputError, match="holds no scored scan"):
        read_records(tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        read_records(tmp_path / "nothing")
    write_run(tmp_path, [], {"a": "no such file"})
    assert [row.status for row in read_records(tmp_path).rows] == ["failed"]
