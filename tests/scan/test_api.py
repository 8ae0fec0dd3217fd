"""Scoring from Python, and the masks that come with scans."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from tiny import IMAGE, MASK

from brainuad.data.volume import Volume
from brainuad.detector import Detector
from brainuad.errors import InputError
from brainuad.inputs.scans import find_scans
from brainuad.scan import ScoreResult, score
from brainuad.scan.run import Settings, score_scans


def test_array_tensor_and_path_agree(detector: Detector, real_result: ScoreResult) -> None:
    image, mask = nib.load(IMAGE), nib.load(MASK)
    array = image.get_fdata(dtype=np.float32)
    tensor = torch.from_numpy(mask.get_fdata() > 0)
    result = score(array, detector, brain_mask=tensor, affine=image.affine, seed=1)
    np.testing.assert_array_equal(result.anomaly, real_result.anomaly)
    assert result.score == real_result.score


@pytest.mark.long
def test_images_of_torchio_and_monai_bring_their_affines(detector: Detector, real_result: ScoreResult) -> None:
    image, mask = nib.load(IMAGE), nib.load(MASK)
    array = torch.from_numpy(image.get_fdata(dtype=np.float32))
    meta = pytest.importorskip("monai.data").MetaTensor(array[None], affine=torch.from_numpy(image.affine))
    torchio = pytest.importorskip("torchio")
    result = score(meta, detector, brain_mask=torchio.LabelMap(MASK), seed=1)
    np.testing.assert_array_equal(result.anomaly, real_result.anomaly)
    np.testing.assert_allclose(result.affine, image.affine, atol=1e-5)
    result = score(torchio.ScalarImage(IMAGE), detector, brain_mask=mask, seed=1)
    np.testing.assert_array_equal(result.anomaly, real_result.anomaly)
    higher = image.affine + np.outer([0, 0, 9, 0], [0, 0, 0, 1])  # by 9 mm
    moved = torchio.LabelMap(tensor=mask.get_fdata()[None], affine=higher)
    with pytest.raises(InputError, match="from its scan"):
        score(meta, detector, brain_mask=moved)
    with pytest.raises(InputError, match="three dimensions"):
        score(torch.zeros(2, 4, 4, 4), detector, affine=image.affine)


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


def test_one_mask_is_not_for_several_scans(scans, scored, detector, tmp_path):
    for name in ("brain_mask", "lesion_mask"):
        with pytest.raises(InputError, match="one mask for 3 scans"):
            score_scans(scans, detector, tmp_path / "out", Settings(**{name: MASK}))


def bad_mask(kind: str, folder: Path) -> Path:
    path = folder / "mask.nii.gz"
    image = nib.load(MASK)
    array, affine = np.asarray(image.dataobj).copy(), image.affine.copy()
    match kind:
        case "empty":
            array[:] = 0
        case "another shape":
            array = array[:-2]
        case "another place":
            affine[0, 3] += 8
        case "where nothing was measured":
            array[:] = 0
            array[:5, :5, :5] = 1
        case "truncated":
            path.write_bytes(MASK.read_bytes()[:1000])
            return path
    nib.save(nib.Nifti1Image(array.astype(np.uint8), affine), path)
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("empty", "the brain mask holds nothing above 0.5"),
        ("another shape", "mask.nii.gz: lies on another grid than the scan"),
        ("another place", "mask.nii.gz: lies up to 8.0 mm from its scan"),
        ("where nothing was measured", "is constant inside the brain mask"),
        ("truncated", "mask.nii.gz: is truncated or damaged"),
    ],
)
def test_masks_that_cannot_be_used_are_named(detector, tmp_path, kind, message):
    shutil.copy(IMAGE, tmp_path / "scan.nii.gz")
    scans = find_scans([tmp_path / "scan.nii.gz"], modality="t1", output=tmp_path / "out")
    settings = Settings(brain_mask=bad_mask(kind, tmp_path))
    (row,) = score_scans(scans, detector, tmp_path / "out", settings)
    assert row["status"] == "failed"
    assert message in row["message"]
    assert "\n" not in row["message"]
    left = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert left == [".scores.csv.lock", "failed", "findings.csv", "run.json", "scores.csv"]
