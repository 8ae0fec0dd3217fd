"""Connected regions: against scikit-image, and with known volumes and places."""

from __future__ import annotations

import numpy as np
import pytest
from delineated import delineated
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from brainuad.calibration import HealthyFindings
from brainuad.data.placement import ATLAS_CENTRE
from brainuad.data.regions import mni_of
from brainuad.scan.findings import find_findings, rarest_first

TO_ATLAS = np.eye(4)
TO_ATLAS[:3, 3] = ATLAS_CENTRE  # scanner's origin at the middle of the atlas


def oblique(spacing: tuple[float, float, float]) -> np.ndarray:
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3] = turn * spacing
    affine[:3, 3] = (-20, 7, 3)
    return affine


@given(seed=st.integers(0, 2**16), spacing=st.sampled_from([(1.0, 1.0, 1.0), (0.9, 1.1, 5.0)]))
@settings(max_examples=25, deadline=None)
def test_regions_are_those_of_another_implementation(seed, spacing):
    rng = np.random.default_rng(seed)
    anomaly = ndimage.gaussian_filter(rng.random((16, 14, 12)), 1).astype(np.float32)
    affine, threshold = oblique(spacing), float(np.quantile(anomaly, 0.85))
    labels, findings, more = find_findings(anomaly, threshold, affine, TO_ATLAS)
    theirs = delineated(anomaly, threshold)
    assert more == 0
    assert labels.dtype == np.uint8
    voxel_ml = np.prod(spacing) / 1000
    assert [found.label for found in findings] == list(range(1, len(theirs) + 1))
    assert [found.voxels for found in findings] == sorted((int(r.area) for r in theirs), reverse=True)
    assert sum(found.ml for found in findings) == pytest.approx((labels > 0).sum() * voxel_ml, rel=1e-2)
    by_start = {tuple(region.coords[0]): region for region in theirs}
    for found in findings:
        region = by_start[tuple(np.argwhere(labels == found.label)[0])]
        assert (found.voxels, found.peak, found.mean) == (
            int(region.area),
            pytest.approx(region.intensity_max, abs=1e-5),
            pytest.approx(region.intensity_mean, abs=1e-5),
        )
        index = np.linalg.solve(affine, [*found.centre_mm, 1])[:3]
        assert labels[tuple(np.rint(index).astype(int))] == found.label  # the centre lies in its region


def test_places_and_sides():
    anomaly = np.zeros((60, 20, 20), np.float32)
    anomaly[5:9, 4:8, 4:8] = 0.9
    anomaly[28:32, 4:8, 4:7] = 0.8
    anomaly[50:52, 4:8, 4:8] = 0.7
    affine = np.eye(4)
    affine[0, 3] = -29.5
    _, findings, _ = find_findings(anomaly, 0.5, affine, TO_ATLAS)
    assert [(found.side, found.voxels, found.ml) for found in findings] == [
        ("left", 64, 0.064), ("midline", 48, 0.048), ("right", 32, 0.032)
    ]  # fmt: skip
    for found in findings:
        assert np.subtract(found.atlas_mm, found.centre_mm) == pytest.approx(ATLAS_CENTRE)
        assert found.mni_mm == pytest.approx(mni_of(np.array(found.atlas_mm)), abs=0.02)
        assert found.region.startswith(found.side) or found.side == "midline"


@given(seed=st.integers(0, 2**16))
@settings(max_examples=15, deadline=None)
def test_rarest_findings_come_first_and_keep_their_voxels(seed):
    rng = np.random.default_rng(seed)
    anomaly = ndimage.gaussian_filter(rng.random((24, 20, 16)), 1).astype(np.float32)
    threshold = float(np.quantile(anomaly, 0.9))
    healthy = HealthyFindings.of(
        [[(float(rng.uniform(threshold, anomaly.max())), int(rng.integers(1, 20)))] for _ in range(30)]
    )
    labels, findings, _ = find_findings(anomaly, threshold, np.eye(4), TO_ATLAS)
    new_labels, ordered = rarest_first(labels, findings, healthy, 0.002)
    assert [found.label for found in ordered] == list(range(1, len(findings) + 1))
    assert [(found.healthy_alike, -found.ml) for found in ordered] == sorted(
        (found.healthy_alike, -found.ml) for found in ordered
    )
    assert sorted(found.centre_mm for found in ordered) == sorted(found.centre_mm for found in findings)
    np.testing.assert_array_equal(new_labels > 0, labels > 0)
    for found in ordered:
        assert (new_labels == found.label).sum() == found.voxels
        assert anomaly[new_labels == found.label].max() == pytest.approx(found.peak, abs=1e-5)
        assert found.healthy_alike == healthy.alike(found.peak, found.voxels / 2)
        assert found.rare == (found.healthy_alike < 1.5)


def test_small_regions_are_left_out():
    anomaly = np.zeros((20, 20, 20), np.float32)
    anomaly[2:4, 2:4, 2:4] = anomaly[10, 10, 10:17] = 1
    _, findings, _ = find_findings(anomaly, 0.5, np.eye(4), TO_ATLAS, smallest_ml=0.008)
    assert [found.voxels for found in findings] == [8]
    labels, findings, _ = find_findings(anomaly * 0, 0.5, np.eye(4), TO_ATLAS)
    assert not labels.any()
    assert findings == []


def test_the_255_largest_have_labels():
    anomaly = np.zeros((60, 60, 20), np.float32)
    anomaly[::4, ::4, ::4] = 1  # 15 * 15 * 5 single voxels
    anomaly[1, 4:6, 4] = 1  # one of them is larger
    labels, findings, more = find_findings(anomaly, 0.5, np.eye(4), TO_ATLAS)
    assert (len(findings), more) == (255, 15 * 15 * 5 - 255)
    assert findings[0].voxels == 3
    assert labels.max() == 255
    assert (labels > 0).sum() == 257
