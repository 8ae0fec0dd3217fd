"""The result of a scored scan, in memory and in files."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from tiny import IMAGE, MASK, tiny_detector

import brainuad
from brainuad.detector import Detector
from brainuad.scan import score


@pytest.fixture(scope="module")
def detector() -> Detector:
    return tiny_detector()


@pytest.fixture(scope="module")
def scored(detector: Detector) -> brainuad.ScoreResult:
    return score(IMAGE, detector, brain_mask=MASK, seed=1)


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
