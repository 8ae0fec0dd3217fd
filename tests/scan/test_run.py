"""Many scans in one run: what is skipped, what fails, what an interrupted run leaves behind."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from dicom_series import write_series
from scan_tables import table
from tiny import CALIBRATION, FILES, IMAGE, MASK

import brainuad.scan.run as run
from brainuad.data.volume import Volume
from brainuad.errors import DeviceError, InputError
from brainuad.inputs.scans import find_scans
from brainuad.scan.pipeline import score_scan
from brainuad.scan.run import Settings, score_scans


def test_what_is_finished_is_skipped(scans, scored, detector, tmp_path):
    first = score_scans(scans, detector, tmp_path / "out", Settings())
    reported = []
    again = score_scans(
        scans, detector, tmp_path / "out", Settings(), report=lambda row, skipped: reported.append(skipped)
    )
    assert scored == [0, 1, 2]
    assert reported == [True] * 3
    assert again == first
    assert json.loads((tmp_path / "out/run.json").read_text())["counts"]["skipped"] == 3


def change_scan(scan: Path, out: Path) -> dict[str, Any]:
    image = nib.load(scan)
    array = np.asarray(image.dataobj).copy()
    array[0, 0, 1] = 1
    nib.save(nib.Nifti1Image(array, image.affine), scan)
    return {}


def cut_sidecar(scan: Path, out: Path) -> dict[str, Any]:
    (out / "b.json").write_text((out / "b.json").read_text()[:100])
    return {}


def drop_output(scan: Path, out: Path) -> dict[str, Any]:
    (out / "b_anomaly.nii.gz").unlink()
    return {}


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        (lambda scan, out: {"settings": Settings(fpr=0.05)}, [0, 1, 2]),
        (lambda scan, out: {"settings": Settings(seed=1)}, [0, 1, 2]),
        (lambda scan, out: {"overwrite": True}, [0, 1, 2]),
        (lambda scan, out: {"settings": Settings(brain_mask=scan.parent)}, "failed"),
        (change_scan, [1]),
        (cut_sidecar, [1]),
        (drop_output, [1]),
    ],
)
def test_what_has_changed_is_scored_again(scans, scored, detector, tmp_path, change, redone):
    score_scans(scans, detector, tmp_path / "out", Settings())
    scored.clear()
    changed = {"settings": Settings()} | change(scans[1].source, tmp_path / "out")
    rows = score_scans(scans, detector, tmp_path / "out", **changed)
    if redone == "failed":  # a folder of masks without the scans' masks
        assert all("holds no brain mask" in row["message"] for row in rows)
    else:
        assert scored == redone


def test_another_calibration_is_another_threshold(scans, scored, detector, tmp_path):
    score_scans(scans, detector, tmp_path / "out", Settings())
    thresholds = {"ssim_ensemble": {0.1: 0.3, 0.05: 0.4, 0.01: 0.5, 0.001: 0.6}}
    other = replace(detector, calibration=replace(CALIBRATION, thresholds=thresholds))
    score_scans(scans, other, tmp_path / "out", Settings())
    assert scored == [0, 1, 2] * 2


def test_one_bad_scan_stops_no_other(scans, scored, detector, tmp_path):
    scans[1].source.write_bytes(scans[1].source.read_bytes()[:5000])
    rows = score_scans(scans, detector, tmp_path / "out", Settings(), jobs=2)
    assert [row["status"] for row in rows] == ["done", "failed", "done"]
    assert "truncated or damaged" in rows[1]["message"]
    assert [row["status"] for row in table(tmp_path / "out")] == ["done", "failed", "done"]
    assert not (tmp_path / "out/b.json").exists()


def test_a_pipe_fails_as_a_scan_and_nobody_waits_for_it(scored, detector, tmp_path):
    os.mkfifo(tmp_path / "pipe.nii")
    piped = find_scans([tmp_path / "pipe.nii"], modality="t1", output=tmp_path / "out")
    (row,) = score_scans(piped, detector, tmp_path / "out", Settings())
    assert "pipe.nii: is not a regular file" in row["message"]


def test_a_broken_device_ends_the_run_and_blames_no_scan(scans, scored, detector, tmp_path, monkeypatch):
    score = run.score_scan

    def break_after_one(*args: Any, **kwargs: Any) -> Any:
        if scored:
            raise DeviceError("cuda", RuntimeError("CUDA error: unspecified launch failure"))
        return score(*args, **kwargs)

    monkeypatch.setattr(run, "score_scan", break_after_one)
    with pytest.raises(DeviceError, match="cuda: stopped working"):
        score_scans(scans, detector, tmp_path / "out", Settings())
    assert [(row["name"], row["status"]) for row in table(tmp_path / "out")] == [("a", "done")]


def test_a_scan_that_fails_now_leaves_no_result_of_before(scans, scored, detector, tmp_path):
    """Whoever reads the folder must not take an old result for the scan's."""
    score_scans(scans, detector, tmp_path / "out", Settings())
    scans[1].source.write_bytes(scans[1].source.read_bytes()[:5000])
    score_scans(scans, detector, tmp_path / "out", Settings())
    assert not (tmp_path / "out/b.json").exists()


def test_an_interrupted_run_goes_on(scans, scored, detector, tmp_path):
    def stop_at_second(row: run.Row, skipped: bool) -> None:
        if row["name"] == "b":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_scans(scans, detector, tmp_path / "out", Settings(), report=stop_at_second)
    assert [row["name"] for row in table(tmp_path / "out")] == ["a", "b"]
    assert scored == [0, 1]
    rows = score_scans(scans, detector, tmp_path / "out", Settings())
    assert scored == [0, 1, 2]
    assert [row["status"] for row in rows] == ["done"] * 3


def test_an_interrupt_of_threads_finishes_what_is_in_work_only(scans, scored, detector, tmp_path):
    def stop(row: run.Row, skipped: bool) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_scans(scans, detector, tmp_path / "out", Settings(), jobs=2, report=stop)
    assert not list((tmp_path / "out").glob(".partial*"))
    for sidecar in (tmp_path / "out").glob("?.json"):
        assert json.loads(sidecar.read_text())["status"] == "done"


def test_a_name_that_is_taken_is_refused(scans, scored, detector, tmp_path):
    """As in a loop over subjects whose scans have one name, into one folder."""
    out = tmp_path / "out"
    score_scans(scans[:1], detector, out, Settings())
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    other, same = tmp_path / "other" / "a.nii.gz", tmp_path / "same" / "a.nii.gz"
    for path, source in ((other, scans[1].source), (same, scans[0].source)):
        path.parent.mkdir()
        path.write_bytes(source.read_bytes())
    (clash,) = find_scans([other], modality="t1", output=out)
    with pytest.raises(InputError, match=r"other/a\.nii\.gz: has the name a, but .*a\.json holds results of"):
        score_scans([scans[2], clash], detector, out, Settings())
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    given = [tmp_path / "mistyped" / "a.nii.gz", scans[2].source]
    with pytest.raises(InputError, match=r"mistyped/a\.nii\.gz: has the name a"):
        score_scans(find_scans(given, modality="t1", output=out), detector, out, Settings())
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (moved,) = find_scans([same], modality="t1", output=out)
    (row,) = score_scans([moved], detector, out, Settings())
    assert row["status"] == "done"
    assert scored == [0], "the same scan elsewhere is done already"
    score_scans([clash], detector, out, Settings(), overwrite=True)
    assert scored == [0, 1]


def test_a_lesion_mask_that_is_most_of_the_brain_is_refused(detector, scored, tmp_path):
    shutil.copy(IMAGE, tmp_path / "scan.nii.gz")
    scans = find_scans([tmp_path / "scan.nii.gz"], modality="t1", output=tmp_path / "out")
    for mask in (IMAGE, MASK):
        (row,) = score_scans(scans, detector, tmp_path / "out", Settings(lesion_mask=mask))
        assert f"{mask.name}: marks" in row["message"]
        assert "most of a brain" in row["message"]
    assert scored == []


def test_the_sidecar_names_the_masks(detector, scored, tmp_path):
    shutil.copy(IMAGE, tmp_path / "p1_t1.nii.gz")
    (tmp_path / "masks").mkdir()
    shutil.copy(MASK, tmp_path / "masks" / "p1_brain_mask.nii.gz")
    shutil.copy(FILES / "mslub19_seg_4mm.nii.gz", tmp_path / "masks" / "p1_seg.nii.gz")
    scans = find_scans([tmp_path / "p1_t1.nii.gz"], modality="t1", output=tmp_path / "out")
    masks = tmp_path / "masks"
    score_scans(scans, detector, tmp_path / "out", Settings(brain_mask=masks, lesion_mask=masks))
    sidecar = json.loads((tmp_path / "out" / "p1_t1.json").read_text())
    assert sidecar["brain_mask"] == str(masks / "p1_brain_mask.nii.gz")
    assert sidecar["lesion_mask"] == str(masks / "p1_seg.nii.gz")


def test_a_lesion_mask_beside_the_brain_is_told(detector, scored, tmp_path):
    shutil.copy(IMAGE, tmp_path / "p1_t1.nii.gz")
    image = nib.load(IMAGE)
    beside = np.zeros(image.shape, np.uint8)
    beside[0, 0, 0] = 1
    nib.save(nib.Nifti1Image(beside, image.affine), tmp_path / "p1_seg.nii.gz")
    scans = find_scans([tmp_path / "p1_t1.nii.gz"], modality="t1", output=tmp_path / "out")
    (row,) = score_scans(scans, detector, tmp_path / "out", Settings(lesion_mask=tmp_path / "p1_seg.nii.gz"))
    assert "p1_seg.nii.gz, the lesion mask, marks nothing in the brain" in row["warnings"]


def test_a_folder_that_cannot_be_written_to_is_found_out_first(scans, scored, detector, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"):
        score_scans(scans, detector, tmp_path / "file" / "out", Settings())
    assert scored == []


def test_a_fraction_beyond_the_calibration_is_refused_first(scans, scored, detector, tmp_path):
    with pytest.raises(InputError, match=r"no threshold for 0\.2. Choose 0\.001 to 0\.1"):
        score_scans(scans, detector, tmp_path / "out", Settings(fpr=0.2))
    assert not (tmp_path / "out").exists()


def test_a_score_without_calibration_gives_a_map_without_findings(detector):
    result = score_scan(Volume.load(IMAGE), detector, brain_mask=Volume.load(MASK), score="l1")
    assert (result.threshold, result.findings, result.lesions.any()) == (None, [], False)
    assert result.anomaly.max() > 0
    assert any("l1 was not calibrated" in warning for warning in result.warnings)


def test_inputs_without_a_scan_fail_and_the_rest_goes_on(scans, scored, detector, tmp_path):
    (tmp_path / "empty").mkdir()
    score_scans(scans[:1], detector, tmp_path / "out", Settings())
    given = [tmp_path / "empty", tmp_path / "scans", tmp_path / "gone.nii"]
    found = find_scans(given, modality="t1", output=tmp_path / "out")
    rows = score_scans(found, detector, tmp_path / "out", Settings())
    assert [(row["name"], row["status"]) for row in rows] == [
        ("empty", "failed"),
        ("a", "done"),
        ("b", "done"),
        ("c", "done"),
        ("gone", "failed"),
    ]
    assert "empty: holds no t1 scan" in rows[0]["message"]
    assert "gone.nii: no such file or folder. Check the path" in rows[-1]["message"]
    assert [row["message"] for row in table(tmp_path / "out")] == [row["message"] for row in rows]


def test_a_truth_that_cannot_be_read_fails_its_scan(detector, scored, tmp_path):
    shutil.copy(IMAGE, tmp_path / "scan.nii.gz")
    scans = find_scans([tmp_path / "scan.nii.gz"], modality="t1", output=tmp_path / "out")
    (tmp_path / "mask.nii.gz").write_bytes(MASK.read_bytes()[:2000])
    settings = Settings(lesion_mask=tmp_path / "mask.nii.gz")
    (row,) = score_scans(scans, detector, tmp_path / "out", settings)
    assert "mask.nii.gz: is truncated or damaged" in row["message"]
    assert scored == []


def test_a_segmentation_that_cannot_be_written_takes_no_map_along(detector, scored, tmp_path, monkeypatch):
    brain = Volume.load(IMAGE)
    write_series(tmp_path / "series", brain.with_array(np.rint(brain.array)))
    scans = find_scans([tmp_path / "series"], modality="t1", output=tmp_path / "out")

    def fail(labels: Volume, findings: Any, folder: Path, uid: str, path: Path) -> bool:
        assert (tmp_path / "out" / "series_anomaly.nii.gz").is_file()
        raise InputError(folder, "lacks what a DICOM segmentation must repeat", "The NIfTI results are complete")

    monkeypatch.setattr("brainuad.inputs.dicom.segmentation.write_segmentation", fail)
    (row,) = score_scans(scans, detector, tmp_path / "out", Settings())
    assert row["status"] == "done"
    assert "no DICOM segmentation: " in row["warnings"]
    sidecar = json.loads((tmp_path / "out" / "series.json").read_text())
    assert "segmentation" not in sidecar["outputs"]
    assert all((tmp_path / "out" / name).is_file() for name in sidecar["outputs"].values())


def test_a_bids_data_set_gives_a_derivative(detector, scored, tmp_path):
    root = tmp_path / "bids"
    for session in ("ses-1", "ses-2"):
        anat = root / "sub-01" / session / "anat"
        anat.mkdir(parents=True)
        shutil.copy(IMAGE, anat / f"sub-01_{session}_T1w.nii.gz")
    (root / "dataset_description.json").write_text(json.dumps({"Name": "two", "BIDSVersion": "1.10.0"}))
    out = root / "derivatives" / "brainuad"
    scans = find_scans([root], modality="t1", output=out)
    rows = score_scans(scans, detector, out, Settings())
    assert [row["name"] for row in rows] == ["sub-01_ses-1_T1w", "sub-01_ses-2_T1w"]
    description = json.loads((out / "dataset_description.json").read_text())
    assert description["GeneratedBy"][0]["Name"] == "brainuad"
    assert description["SourceDatasets"] == [{"URL": root.as_uri()}]
    folder = out / "sub-01/ses-2/anat"
    assert sorted(path.name.removeprefix("sub-01_ses-2_") for path in folder.iterdir()) == [
        "desc-anomaly_T1w.json",
        "desc-anomaly_T1w.nii.gz",
        "desc-anomaly_T1w.png",
        "desc-brain_mask.nii.gz",
        "desc-lesions_dseg.nii.gz",
        "desc-reconstruction_T1w.nii.gz",
    ]
    sidecar = json.loads((folder / "sub-01_ses-2_desc-anomaly_T1w.json").read_text())
    assert sidecar["outputs"]["brain"] == "sub-01_ses-2_desc-brain_mask.nii.gz"
    scored.clear()
    score_scans(scans, detector, out, Settings())
    assert scored == []


def test_a_full_disk_is_named_and_leaves_nothing_half_written(scans, scored, detector, tmp_path, monkeypatch):
    save = nib.save

    def full_disk(image: Any, path: Path) -> None:
        if "b_recon" in str(path):
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(image, path)

    monkeypatch.setattr(nib, "save", full_disk)
    rows = score_scans(scans, detector, tmp_path / "out", Settings())
    assert [row["status"] for row in rows] == ["done", "failed", "done"]
    assert "b_reconstruction.nii.gz: cannot be written (No space left on device)" in rows[1]["message"]
    assert not list((tmp_path / "out").glob("*b_recon*"))
    assert not (tmp_path / "out/b.json").exists()
