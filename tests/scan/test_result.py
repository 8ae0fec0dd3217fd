"""The result of a scored scan, in memory and in files."""

from __future__ import annotations

import nibabel as nib
import numpy as np
from tiny import IMAGE, MASK

from brainuad.scan import ScoreResult


def test_a_notebook_shows_picture_and_findings(real_result: ScoreResult) -> None:
    assert real_result.plot()._repr_png_().startswith(b"\x89PNG")
    frame = real_result.to_frame()
    assert list(frame.index) == [finding.label for finding in real_result.findings]
    assert list(frame["ml"]) == [finding.ml for finding in real_result.findings]
    assert list(frame["scanner_z"]) == [round(finding.centre_mm[2], 1) for finding in real_result.findings]
    shown = real_result._repr_html_()
    assert shown.count("<tr") == len(frame) + 2  # its head has two lines
    assert "data:image/png;base64," in shown
    assert f"score {real_result.score:.4f}" in shown


def test_score_lies_on_the_scan(real_result: ScoreResult) -> None:
    stored = nib.load(IMAGE)
    for name in ("anomaly", "reconstruction", "image", "brain"):
        assert getattr(real_result, name).shape == stored.shape, name
    np.testing.assert_allclose(real_result.affine, stored.affine)
    mask = nib.load(MASK).get_fdata() > 0
    assert real_result.brain[mask].all()
    assert real_result.brain.sum() < 1.3 * mask.sum()
    assert not real_result.anomaly[~real_result.brain].any()
    assert 0 < real_result.anomaly.max() <= 2
    assert 0 < real_result.score < 2
