"""A scan that was scored, and three that are scored in no time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from tiny import IMAGE, MASK, tiny_detector

import brainuad.scan.run as run
from brainuad.data.volume import Volume
from brainuad.detector import Detector
from brainuad.inputs.scans import find_scans
from brainuad.scan import ScoreResult, score


@pytest.fixture(scope="module")
def detector() -> Detector:
    return tiny_detector()


@pytest.fixture(scope="module")
def real_result(detector: Detector) -> ScoreResult:
    return score(IMAGE, detector, brain_mask=MASK, seed=1)


@pytest.fixture
def scans(tmp_path: Path) -> list[Any]:
    """Three scans that differ in one voxel, so that their hashes do."""
    image = nib.load(IMAGE)
    folder = tmp_path / "scans"
    folder.mkdir()
    for i, name in enumerate("abc"):
        array = np.asarray(image.dataobj).copy()
        array[0, 0, 0] = i
        nib.save(nib.Nifti1Image(array, image.affine), folder / f"{name}.nii.gz")
    return find_scans([folder], modality="t1", output=tmp_path / "out")


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch, real_result: ScoreResult) -> list[Path]:
    """Every scan is scored in no time, with the result of one real scan; the list tells which were."""
    done: list[Any] = []

    def instantly(scan: Volume, *args: Any, **kwargs: Any) -> Any:
        done.append(int(scan.file_axes()[0, 0, 0]))
        settings = replace(real_result.record.settings, fpr=kwargs["fpr"])
        return replace(real_result, record=replace(real_result.record, settings=settings))

    monkeypatch.setattr(run, "score_scan", instantly)
    monkeypatch.setattr("brainuad.scan.result._picture", lambda *about: SimpleNamespace(png=lambda: b"a picture"))
    return done
