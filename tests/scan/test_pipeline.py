"""Whole scans scored in their own grid."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from tiny import CALIBRATION, IMAGE, MASK, tiny_detector

import brainuad
from brainuad.calibration import HealthyAppearance
from brainuad.data.atlas import place_scan
from brainuad.data.cohort import Case
from brainuad.data.loading import load_case
from brainuad.data.volume import Volume
from brainuad.detector import Detector
from brainuad.errors import InputError
from brainuad.prepare.raw import RawScan
from brainuad.prepare.scan import Preparation, prepare_scan
from brainuad.scan import score


@pytest.fixture(scope="module")
def detector() -> Detector:
    return tiny_detector()


@pytest.fixture(scope="module")
def scored(detector: Detector) -> brainuad.ScoreResult:
    return score(IMAGE, detector, brain_mask=MASK, seed=1)


def test_score_lies_on_the_scan(scored: brainuad.ScoreResult) -> None:
    stored = nib.load(IMAGE)
    for name in ("anomaly", "reconstruction", "image", "brain"):
        assert getattr(scored, name).shape == stored.shape, name
    np.testing.assert_allclose(scored.affine, stored.affine)
    mask = nib.load(MASK).get_fdata() > 0
    assert scored.brain[mask].all()
    assert scored.brain.sum() < 1.3 * mask.sum()
    assert not scored.anomaly[~scored.brain].any()
    assert 0 < scored.anomaly.max() <= 2
    assert 0 < scored.score < 2


def test_what_the_model_saw_is_the_scan(scored: brainuad.ScoreResult) -> None:
    """There and back through registration, 4 mm voxels and bias correction, the brain is where it was."""
    stored = nib.load(IMAGE).get_fdata()
    inside = nib.load(MASK).get_fdata() > 0
    assert np.corrcoef(stored[inside], scored.image[inside])[0, 1] > 0.8


def test_a_scan_is_prepared_as_a_cohort_is(detector: Detector, tmp_path: Path) -> None:
    """Through files (prepare, then load) and in memory, the model sees the same numbers."""
    raw = RawScan("patient19", "MSLUB", {"t1": IMAGE}, MASK, splits=("test",))
    row = prepare_scan(raw, tmp_path / "Data", Preparation(spacing=4.0, seed=1))
    assert row["status"] == "prepared", row
    base = tmp_path / "Data" / "Test" / "MSLUB"
    image, mask = base / "t1" / "patient19_t1.nii.gz", base / "mask" / "patient19_mask.nii.gz"
    case = Case("patient19", "MSLUB", "test", image, mask, None, 0, None)
    from_files = load_case(case, replace(detector.data_config, cache_dir=str(tmp_path / "cache")))
    placed = place_scan(Volume.load(IMAGE), detector.data_config, brain_mask=Volume.load(MASK), seed=1)
    np.testing.assert_array_equal(placed.mask, from_files.mask)
    np.testing.assert_allclose(placed.image, from_files.image, atol=1e-5)
    assert placed.alignment == pytest.approx(row["alignment"], abs=1e-4)


@pytest.mark.parametrize("axes", ["LPS", "SAR"])
def test_orientation_does_not_matter(detector: Detector, scored: brainuad.ScoreResult, axes: str) -> None:
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(nib.load(IMAGE).affine), nib.orientations.axcodes2ornt(axes)
    )
    image, mask = (nib.load(path).as_reoriented(turn) for path in (IMAGE, MASK))
    result = score(image, detector, brain_mask=mask, seed=1)
    assert result.anomaly.shape == image.shape
    np.testing.assert_allclose(result.affine, image.affine)
    turned = nib.orientations.apply_orientation(scored.anomaly, turn)
    np.testing.assert_allclose(result.anomaly, turned, atol=1e-4)


def test_array_tensor_and_path_agree(detector: Detector, scored: brainuad.ScoreResult) -> None:
    image, mask = nib.load(IMAGE), nib.load(MASK)
    array = image.get_fdata(dtype=np.float32)
    tensor = torch.from_numpy(mask.get_fdata() > 0)
    result = score(array, detector, brain_mask=tensor, affine=image.affine, seed=1)
    np.testing.assert_array_equal(result.anomaly, scored.anomaly)
    assert result.score == scored.score


@pytest.mark.long
def test_images_of_torchio_and_monai_bring_their_affines(detector: Detector, scored: brainuad.ScoreResult) -> None:
    image, mask = nib.load(IMAGE), nib.load(MASK)
    array = torch.from_numpy(image.get_fdata(dtype=np.float32))
    meta = pytest.importorskip("monai.data").MetaTensor(array[None], affine=torch.from_numpy(image.affine))
    torchio = pytest.importorskip("torchio")
    result = score(meta, detector, brain_mask=torchio.LabelMap(MASK), seed=1)
    np.testing.assert_array_equal(result.anomaly, scored.anomaly)
    np.testing.assert_allclose(result.affine, image.affine, atol=1e-5)
    result = score(torchio.ScalarImage(IMAGE), detector, brain_mask=mask, seed=1)
    np.testing.assert_array_equal(result.anomaly, scored.anomaly)
    higher = image.affine + np.outer([0, 0, 9, 0], [0, 0, 0, 1])  # by 9 mm
    moved = torchio.LabelMap(tensor=mask.get_fdata()[None], affine=higher)
    with pytest.raises(InputError, match="from its scan"):
        score(meta, detector, brain_mask=moved)
    with pytest.raises(InputError, match="three dimensions"):
        score(torch.zeros(2, 4, 4, 4), detector, affine=image.affine)


def test_a_notebook_shows_picture_and_findings(scored: brainuad.ScoreResult) -> None:
    assert scored.plot()._repr_png_().startswith(b"\x89PNG")
    frame = scored.to_frame()
    assert list(frame.index) == [finding.label for finding in scored.findings]
    assert list(frame["ml"]) == [finding.ml for finding in scored.findings]
    assert list(frame["scanner_z"]) == [round(finding.centre_mm[2], 1) for finding in scored.findings]
    shown = scored._repr_html_()
    assert shown.count("<tr") == len(frame) + 2  # its head has two lines
    assert "data:image/png;base64," in shown
    assert f"score {scored.score:.4f}" in shown


def test_brain_extracted_scan_needs_no_mask(detector: Detector, scored: brainuad.ScoreResult) -> None:
    image, mask = nib.load(IMAGE), nib.load(MASK)
    extracted = image.get_fdata() * (mask.get_fdata() > 0)
    result = score(extracted, detector, affine=image.affine)
    overlap = 2 * (result.brain & scored.brain).sum() / (result.brain.sum() + scored.brain.sum())
    assert overlap > 0.95


def test_model_that_ignores_affines(scored: brainuad.ScoreResult) -> None:
    """The published loader's grid: 1 mm, centred, halved."""
    released = tiny_detector(imageDim=(192, 192, 100), rescaleFactor=4.0, affine="ignored", smoothing_iterations=3)
    result = score(IMAGE, released, brain_mask=MASK)
    inside = (scored.image > 0) & (result.image > 0)
    assert inside.sum() > 0.4 * scored.brain.sum()
    assert np.corrcoef(result.image[inside], scored.image[inside])[0, 1] > 0.7


def test_unusable_scans(detector: Detector, tmp_path: Path) -> None:
    image = Volume.load(IMAGE)
    with pytest.raises(InputError, match="no such file"):
        score(tmp_path / "none.nii.gz", detector)
    with pytest.raises(InputError, match="affine"):
        score(image.array, detector)
    with pytest.raises(InputError, match="is a list"):
        score([1, 2], detector)
    with pytest.raises(InputError, match=r"mask holds nothing above 0\.5\. Give a mask .* brain$"):
        score(IMAGE, detector, brain_mask=np.zeros(image.array.shape))
    with pytest.raises(InputError, match="another grid"):
        score(IMAGE, detector, brain_mask=np.ones((4, 4, 4)))
    with pytest.raises(InputError, match="one value only"):
        score(np.ones_like(image.array), detector, brain_mask=MASK, affine=image.affine)


def test_a_small_brain_is_warned_of_once() -> None:
    image, detector = Volume.load(IMAGE), tiny_detector()
    usual = HealthyAppearance(brain_ml=tuple(range(1300, 1400)))
    small = image.affine @ np.diag([0.88, 0.88, 0.88, 1.0])
    calibrated = replace(detector, calibration=replace(CALIBRATION, appearance=usual))
    mask = Volume.load(MASK).array
    found = score(image.array, calibrated, brain_mask=mask, affine=small, score="ssim_ensemble").warnings
    assert sum("brain volume" in warning for warning in found) == 1


def test_a_fault_with_a_remedy_of_its_own_gets_no_other(detector: Detector) -> None:
    image = Volume.load(IMAGE)
    noise = np.random.default_rng(0).random(image.array.shape, dtype=np.float32) - 0.5
    with pytest.raises(InputError, match=r"read as signed\. Give the original scan$"):
        score(noise * image.array, detector, brain_mask=MASK, affine=image.affine)


@pytest.mark.parametrize(
    ("affine", "fault"),
    [
        (np.eye(3), r"has shape \(3, 3\)"),
        ("RAS", r"is no matrix of numbers \('RAS'\)"),
        ([[1, 2], [3]], "is no matrix of numbers"),
        (Volume.load(IMAGE).affine.T, "has the last row"),
    ],
)
def test_an_affine_that_is_none_is_refused(detector: Detector, affine: Any, fault: str) -> None:
    with pytest.raises(InputError, match=f"^affine: {fault}.*An array needs the 4 x 4 matrix"):
        score(Volume.load(IMAGE).array, detector, brain_mask=MASK, affine=affine)


def test_an_affine_beside_an_images_own_is_refused(detector: Detector) -> None:
    for image in (IMAGE, str(IMAGE), nib.load(IMAGE)):
        with pytest.raises(InputError, match="affine: is given, but the image has its own"):
            score(image, detector, brain_mask=MASK, affine=np.eye(4))


def test_a_failure_of_the_libraries_names_the_scan(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("Exception thrown\nin ITK")

    monkeypatch.setattr("brainuad.scan.pipeline.place_scan", fail)
    with pytest.raises(InputError, match=r"mslub19_t1_4mm\.nii\.gz: Exception thrown in ITK\."):
        score(IMAGE, detector, brain_mask=MASK)
