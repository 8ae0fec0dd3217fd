"""Whole scans scored in their own grid."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from tiny import CALIBRATION, IMAGE, MASK, tiny_detector

from brainuad.calibration import HealthyAppearance
from brainuad.data.atlas import place_scan
from brainuad.data.cohort import Case
from brainuad.data.loading import load_case
from brainuad.data.volume import Volume
from brainuad.detector import Detector
from brainuad.prepare.raw import RawScan
from brainuad.prepare.scan import Preparation, prepare_scan
from brainuad.scan import ScoreResult, score


def test_what_the_model_saw_is_the_scan(real_result: ScoreResult) -> None:
    """There and back through registration, 4 mm voxels and bias correction, the brain is where it was."""
    stored = nib.load(IMAGE).get_fdata()
    inside = nib.load(MASK).get_fdata() > 0
    assert np.corrcoef(stored[inside], real_result.image[inside])[0, 1] > 0.8


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
def test_orientation_does_not_matter(detector: Detector, real_result: ScoreResult, axes: str) -> None:
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(nib.load(IMAGE).affine), nib.orientations.axcodes2ornt(axes)
    )
    image, mask = (nib.load(path).as_reoriented(turn) for path in (IMAGE, MASK))
    result = score(image, detector, brain_mask=mask, seed=1)
    assert result.anomaly.shape == image.shape
    np.testing.assert_allclose(result.affine, image.affine)
    turned = nib.orientations.apply_orientation(real_result.anomaly, turn)
    np.testing.assert_allclose(result.anomaly, turned, atol=1e-4)


def test_brain_extracted_scan_needs_no_mask(detector: Detector, real_result: ScoreResult) -> None:
    image, mask = nib.load(IMAGE), nib.load(MASK)
    extracted = image.get_fdata() * (mask.get_fdata() > 0)
    result = score(extracted, detector, affine=image.affine)
    overlap = 2 * (result.brain & real_result.brain).sum() / (result.brain.sum() + real_result.brain.sum())
    assert overlap > 0.95


def test_model_that_ignores_affines(real_result: ScoreResult) -> None:
    """The published loader's grid: 1 mm, centred, halved."""
    released = tiny_detector(imageDim=(192, 192, 100), rescaleFactor=4.0, affine="ignored", smoothing_iterations=3)
    result = score(IMAGE, released, brain_mask=MASK)
    inside = (real_result.image > 0) & (result.image > 0)
    assert inside.sum() > 0.4 * real_result.brain.sum()
    assert np.corrcoef(result.image[inside], real_result.image[inside])[0, 1] > 0.7


def test_a_small_brain_is_warned_of_once() -> None:
    image, detector = Volume.load(IMAGE), tiny_detector()
    usual = HealthyAppearance(brain_ml=tuple(range(1300, 1400)))
    small = image.affine @ np.diag([0.88, 0.88, 0.88, 1.0])
    calibrated = replace(detector, calibration=replace(CALIBRATION, appearance=usual))
    mask = Volume.load(MASK).array
    found = score(image.array, calibrated, brain_mask=mask, affine=small, score="ssim_ensemble").warnings
    assert sum("brain volume" in warning for warning in found) == 1
