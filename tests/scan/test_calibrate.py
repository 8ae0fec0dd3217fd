"""Calibrating from scans to a folder that scores with the new thresholds."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run
from exact import false_positive_threshold
from tiny import IMAGE, MASK, tiny_detector

import brainuad
from brainuad.calibration import appearance_of
from brainuad.calibration.findings import measure_findings
from brainuad.data.atlas import PlacedScan
from brainuad.data.cohort import manifest_cases
from brainuad.data.loading import load_case
from brainuad.data.volume import Volume
from brainuad.detector import Detector, Maps, load_model
from brainuad.errors import InputError
from brainuad.evaluation import FALSE_POSITIVE_FRACTIONS, scan_score
from brainuad.registry import SCORES
from brainuad.scan import map_scan
from brainuad.scan.calibrate import SUMMARIES, _check_other_model, _copy_model, _warn_of_odd, calibrate
from brainuad.scoring import postprocess
from brainuad.scoring.rarity import RARITY
from brainuad.scoring.repertoire import SCORE

CALIBRATED = [name for name in SCORES if SCORES.draws.get(name, 1) == 1]
DEMO = Path(brainuad.__file__).parent / "assets" / "demo"
SCANS = {"ixi067": (DEMO / "IXI067_t1.nii.gz", DEMO / "IXI067_mask.nii.gz"), "mslub19": (IMAGE, MASK)}


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, two raw scans and their masks."""
    root = tmp_path_factory.mktemp("room")
    tiny_detector().save(root / "model")
    for folder in ("scans", "masks"):
        (root / folder).mkdir()
    for name, (scan, mask) in SCANS.items():
        shutil.copy(scan, root / "scans" / f"{name}_t1.nii.gz")
        shutil.copy(mask, root / "masks" / f"{name}_mask.nii.gz")
    return root


@pytest.fixture(scope="module")
def mapped(room: Path) -> tuple[PlacedScan, Maps, dict[str, float]]:
    """One of the scans through the chain of `brainuad score`."""
    return map_scan(
        Volume.load(room / "scans" / "mslub19_t1.nii.gz"),
        load_model(room / "model", "cpu"),
        brain_mask=Volume.load(room / "masks" / "mslub19_mask.nii.gz"),
        scores=CALIBRATED,
    )


@pytest.fixture(scope="module")
def cohort(room: Path) -> Path:
    """A manifest of prepared scans, of which the first two are healthy and for validation."""
    lines = ["subject,image,mask,seg,label,split"]
    splits = {"IXI067": "val", "IXI096": "val", "IXI097": "test", "patient07": "val"}
    for subject, split in splits.items():
        seg = DEMO / f"{subject}_seg.nii.gz"
        lines.append(
            f"{subject},{DEMO / subject}_t1.nii.gz,{DEMO / subject}_mask.nii.gz,"
            f"{seg if seg.exists() else ''},{int(seg.exists())},{split}"
        )
    (room / "cohort.csv").write_text("\n".join(lines))
    return room / "cohort.csv"


@pytest.fixture(scope="module")
def calibrated(room: Path) -> Path:
    """The folder that the command made, of two scans at a time."""
    options = ("--brain-mask", room / "masks", "-o", room / "out", "--jobs", 2)
    shown = run("calibrate", room / "model", room / "scans", *options)
    assert shown.stdout.splitlines()[3].startswith("ssim_ensemble\t1.0%\t")
    assert "only 2 healthy scans" in shown.stderr
    return room / "out"


@pytest.fixture
def folder(calibrated: Path, tmp_path: Path) -> Path:
    """A copy of it to change."""
    return Path(shutil.copytree(calibrated, tmp_path / "out"))


def test_a_scan_goes_the_way_that_a_users_scan_goes(
    calibrated: Path, mapped: tuple[PlacedScan, Maps, dict[str, float]]
) -> None:
    placed, maps, _ = mapped
    calibration = Detector.load(calibrated).calibration
    assert list(calibration.thresholds) == CALIBRATED
    for score, anomaly in maps.final.items():
        assert scan_score(anomaly, placed.mask) in calibration.scan_scores[score]
    for score, known in calibration.findings.items():
        for fraction, healthy in known.items():
            kept = np.float32(np.float16(maps.final[score]))
            findings = measure_findings(kept, calibration.threshold(score, fraction))
            assert len(findings) in healthy.counts
            assert [healthy.alike(peak, voxels) > 0 for peak, voxels in findings] == [True] * len(findings)
    assert round(placed.brain.ml, 5) in calibration.appearance.brain_ml
    assert round(placed.alignment, 5) in calibration.appearance.alignment
    assert calibration.scans == 2
    assert calibration.subjects == ("ixi067_t1", "mslub19_t1")
    assert calibration.made_from == "raw scans"
    assert calibration.brainuad == brainuad.__version__


def test_the_folder_is_the_same_model_with_thresholds(room: Path, calibrated: Path) -> None:
    detector = load_model(calibrated, "cpu")
    assert detector.fingerprint == Detector.load(room / "model").fingerprint
    result = brainuad.score(IMAGE, detector, brain_mask=MASK, score="paper")
    assert result.threshold == detector.calibration.threshold(SCORE, 0.01)
    assert result.percentile in (25.0, 75.0)
    assert any("only 2 healthy scans" in warning for warning in result.warnings)


def test_a_cohorts_healthy_validation_scans(room: Path, cohort: Path, tmp_path: Path) -> None:
    made = calibrate(room / "model", [cohort], tmp_path / "out", device="cpu")
    calibration, detector = made.calibration, Detector.load(room / "model")
    assert calibration.made_from == "prepared scans"
    assert calibration.subjects == ("IXI067", "IXI096")
    assert calibration.appearance.brain_ml == ()
    assert len(calibration.appearance.distances) == 2
    maps, masks = [], []
    for case in manifest_cases(cohort)[:2]:
        loaded = load_case(case, detector.data_config)
        found = detector.maps(loaded.image, loaded.mask, ("l1", SCORE), clean=False).raw
        maps.append({name: postprocess(torch.from_numpy(map), loaded.mask).numpy() for name, map in found.items()})
        masks.append(loaded.mask)
    assert calibration.voxels == sum(mask.sum() for mask in masks)
    for score in ("l1", SCORE):
        brains = [found[score][mask] for found, mask in zip(maps, masks, strict=True)]
        for fraction in FALSE_POSITIVE_FRACTIONS:
            threshold = false_positive_threshold(brains, fraction)
            assert calibration.threshold(score, fraction) == pytest.approx(threshold, rel=0.01)


def test_with_three_healthy_scans_scores_relative_to_health_work(room: Path, cohort: Path, tmp_path: Path) -> None:
    three = tmp_path / "three.csv"
    three.write_text(cohort.read_text().replace(",0,test", ",0,val"))
    made = calibrate(room / "model", [three], tmp_path / "out", device="cpu")
    assert made.calibration.scans == 3
    relative = {"l1_z", "l1_ssim_z", "intensity_atlas"}
    assert set(made.calibration.thresholds) == {*CALIBRATED, *relative, RARITY}
    assert set(made.calibration.findings) == {"l1", "ssim_ensemble", "l1_ssim", *relative, RARITY}
    detector = Detector.load(tmp_path / "out")
    assert detector.health is not None
    assert detector.health.scans == 3
    scan, mask = room / "scans" / "mslub19_t1.nii.gz", room / "masks" / "mslub19_mask.nii.gz"
    words = ("score", scan, "--brain-mask", mask, "--no-report", "-o", tmp_path / "scored", "--score")
    run(*words, "l1_z", "--model", tmp_path / "out")
    sidecar = json.loads((tmp_path / "scored" / "mslub19_t1.json").read_text())
    assert sidecar["settings"]["score"] == "l1_z"
    assert sidecar["calibration"]["threshold"] == pytest.approx(made.calibration.threshold("l1_z", 0.01))
    assert sidecar["calibration"]["healthy_findings"]["count"]["lowest"] == min(
        made.calibration.findings["l1_z"][0.01].counts
    )
    alike = [finding["healthy_alike"] for finding in sidecar["findings"]]
    assert alike == sorted(alike)
    assert [finding["rare"] for finding in sidecar["findings"]] == [number == 0 for number in alike]
    assert "tiny" not in run(*words, "l2_z", "--model", tmp_path / "out", code=1).stderr
    refused = run(*words, "l1_z", "--model", room / "model", code=1).stderr
    assert "l1_z: needs healthy scans to compare with" in refused
    assert "brainuad calibrate" in refused


def test_two_scans_leave_no_scores_relative_to_health(calibrated: Path, folder: Path, room: Path) -> None:
    detector = Detector.load(calibrated)
    assert detector.health is None
    assert not any(name.endswith("_z") for name in detector.calibration.thresholds)
    with pytest.raises(InputError, match="l1_z: needs healthy scans to compare with"):
        detector.scores.check("l1_z")


def test_another_seed_is_another_calibration(room: Path, cohort: Path, tmp_path: Path) -> None:
    one, other = (calibrate(room / "model", [cohort], tmp_path / "out", device="cpu", seed=seed) for seed in (1, 2))
    assert [row["status"] for row in one.rows + other.rows] == ["done"] * 4
    assert other.calibration.seed == 2
    assert other.calibration.thresholds["l1"] != one.calibration.thresholds["l1"]


def test_a_rerun_measures_only_what_is_missing(room: Path, folder: Path) -> None:
    before = (folder / "calibration.json").read_bytes()
    words = ("calibrate", room / "model", room / "scans", "--brain-mask", room / "masks", "-o", folder, "--json")
    again = json.loads(run(*words).stdout)
    assert [row["status"] for row in again["rows"]] == ["skipped", "skipped"]
    assert (folder / "calibration.json").read_bytes() == before
    assert again["calibration"]["thresholds"] == json.loads(before)["thresholds"]
    first, _ = sorted((folder / SUMMARIES).iterdir())
    os.truncate(first, 1000)  # a disk may do that, a killed process cannot
    again = json.loads(run(*words).stdout)
    assert sorted(row["status"] for row in again["rows"]) == ["done", "skipped"]
    assert (folder / "calibration.json").read_bytes() == before


def test_a_bad_scan_is_left_out_by_name(room: Path, folder: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad_t1.nii.gz"
    bad.write_bytes((room / "scans" / "ixi067_t1.nii.gz").read_bytes()[:5000])
    masks = shutil.copytree(room / "masks", tmp_path / "masks")
    shutil.copy(masks / "ixi067_mask.nii.gz", masks / "bad_mask.nii.gz")
    (tmp_path / "empty").mkdir()
    inputs = (room / "scans", bad, tmp_path / "empty")
    result = run("calibrate", room / "model", *inputs, "--brain-mask", masks, "-o", folder, "--json", code=3)
    rows = json.loads(result.stdout)["rows"]
    assert [row["status"] for row in rows] == ["skipped", "skipped", "failed", "failed"]
    assert "holds no t1 scan" in rows[-1]["message"]
    assert "left out bad_t1" in result.stderr
    calibration = Detector.load(folder).calibration
    assert calibration.left_out == ("bad_t1", "empty")
    assert calibration.subjects == ("ixi067_t1", "mslub19_t1")


def test_a_models_own_folder_is_changed_without_another(room: Path, calibrated: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(room / "model", tmp_path / "model"))
    shutil.copytree(calibrated / SUMMARIES, model / SUMMARIES)
    weights = (model / "model.safetensors").stat()
    run("calibrate", model, room / "scans", "--brain-mask", room / "masks")
    assert (model / "calibration.json").read_bytes() == (calibrated / "calibration.json").read_bytes()
    assert (model / "model.safetensors").stat().st_ino == weights.st_ino


def test_what_cannot_be_done(room: Path, folder: Path, tmp_path: Path) -> None:
    scans, masks = room / "scans", room / "masks"
    assert "Add -o DIR" in run("calibrate", "lite-t1", scans, code=1).stderr
    assert "is neither a shipped model nor a folder" in run("calibrate", tmp_path / "none", scans, code=1).stderr
    one = run("calibrate", room / "model", scans / "ixi067_t1.nii.gz", "--brain-mask", masks, "-o", folder, code=1)
    assert "ixi067_t1.nii.gz: is one healthy scan. Give at least two" in one.stderr
    assert "is no folder" in run("calibrate", room / "model", scans, "--brain-mask", tmp_path / "x", code=1).stderr
    no_mask = run("calibrate", room / "model", scans, "--brain-mask", tmp_path, "-o", tmp_path / "new", code=1)
    assert "holds no brain mask for ixi067_t1.nii.gz" in no_mask.stderr
    assert "only 0 of 2 healthy scan(s) could be used" in no_mask.stderr
    assert not list((tmp_path / "new").rglob("*.*")), "nothing that passes for a model"
    other = tiny_detector()
    next(other.model.parameters()).data.add_(1)
    other.save(tmp_path / "other")
    with pytest.raises(InputError, match="holds another model"):
        calibrate(room / "model", [scans], tmp_path / "other", brain_mask=masks, device="cpu")


def test_a_scan_counts_once(room: Path, tmp_path: Path) -> None:
    shutil.copytree(room / "scans", tmp_path / "scans")
    shutil.copy(room / "scans" / "ixi067_t1.nii.gz", tmp_path / "scans" / "again_t1.nii.gz")
    ended = run("calibrate", room / "model", tmp_path / "scans", "-o", tmp_path / "new", code=1)
    assert "ixi067_t1.nii.gz: has the same contents as" in ended.stderr
    assert not (tmp_path / "new").exists()


def test_a_scan_unlike_the_others_is_told(cohort: Path, caplog: pytest.LogCaptureFixture) -> None:
    detector = load_model("lite-t1", "cpu")
    case = load_case(manifest_cases(cohort)[0], detector.data_config)
    usual, inverted = (appearance_of(image, case.mask) for image in (case.image, (1 - case.image) * case.mask))
    _warn_of_odd({"usual": usual, "inverted": inverted}, detector)
    (record,) = caplog.records
    assert record.getMessage().startswith("inverted: contrast")


def test_a_copy_of_the_model_that_was_cut_off_is_made_again(
    room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies: list[Path] = []

    def killed_at_the_second(source: Path, target: Path, **_: object) -> None:
        copies.append(target)
        if len(copies) == 2:
            raise KeyboardInterrupt
        Path(target).write_bytes(Path(source).read_bytes())

    with monkeypatch.context() as patch:
        patch.setattr("brainuad.scan.calibrate.shutil.copyfile", killed_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            _copy_model(room / "model", tmp_path)
    _check_other_model(tmp_path, load_model(room / "model", "cpu"))
    _copy_model(room / "model", tmp_path)
    assert Detector.load(tmp_path).fingerprint == Detector.load(room / "model").fingerprint
