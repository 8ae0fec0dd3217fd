"""What healthy scans have above a threshold, against counting it out."""

from __future__ import annotations

import json

import numpy as np
import pytest
from delineated import delineated
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from brainuad.calibration import Calibration, HealthyFindings
from brainuad.calibration.findings import measure_findings
from brainuad.record import Spread

FINDING = st.tuples(st.integers(1, 9).map(lambda tenths: tenths / 10), st.integers(8, 30))
SCANS = st.lists(st.lists(FINDING, max_size=6), min_size=1, max_size=5)


@given(scans=SCANS, finding=FINDING)
def test_the_greatest_findings_stand_for_all(scans, finding):
    healthy = HealthyFindings.of(scans)
    peak, voxels = finding
    assert healthy.alike(peak, voxels) == sum(
        any(high >= peak and size >= voxels for high, size in scan) for scan in scans
    )
    assert healthy.counts == tuple(map(len, scans))
    assert healthy.voxels == tuple(sum(size for _, size in scan) for scan in scans)
    assert HealthyFindings.from_dict(json.loads(json.dumps(healthy.to_dict()))) == healthy


@given(scans=SCANS, finding=FINDING)
def test_a_higher_and_larger_finding_is_no_more_common(scans, finding):
    healthy, (peak, voxels) = HealthyFindings.of(scans), finding
    assert healthy.alike(peak + 0.1, voxels) <= healthy.alike(peak, voxels)
    assert healthy.alike(peak, voxels + 1) <= healthy.alike(peak, voxels)


def test_rare_is_rarer_than_1_in_20():
    forty = HealthyFindings.of([[(0.5, 10)]] * 2 + [[]] * 38)
    assert forty.is_rare(1)
    assert not forty.is_rare(2)
    assert forty.is_rare(forty.alike(0.6, 10))
    assert not forty.is_rare(forty.alike(0.5, 10))


@given(seed=st.integers(0, 2**16))
@settings(max_examples=20, deadline=None)
def test_findings_are_those_of_another_implementation(seed):
    anomaly = ndimage.gaussian_filter(np.random.default_rng(seed).random((16, 14, 12)), 1)
    threshold = float(np.quantile(anomaly, 0.9))
    theirs = delineated(anomaly, threshold)
    expected = [(round(float(r.intensity_max), 4), int(r.area)) for r in theirs if r.area >= 8]
    assert sorted(measure_findings(anomaly, threshold)) == sorted(expected)


def test_no_finding_is_none():
    assert measure_findings(np.zeros((9, 9, 9)), 0.5) == []


def test_between_calibrated_fractions_the_lower_threshold_counts():
    few, many = HealthyFindings.of([[(0.5, 10)]] * 2), HealthyFindings.of([[(0.5, 20)]] * 2)
    calibration = Calibration(2, 100, {"l1": {0.01: 0.4, 0.1: 0.2}}, findings={"l1": {0.01: few, 0.1: many}})
    assert calibration.healthy_findings("l1", 0.01) == (0.01, few)
    assert calibration.healthy_findings("l1", 0.02) == (0.1, many)
    assert calibration.healthy_findings("l1", 0.001) == (0.01, few)
    assert calibration.healthy_findings("l1", 0.2) is None
    assert calibration.healthy_findings("l2", 0.01) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts": [1, 2, 3]}, "another number of scans"),
        ({"greatest": [[[0.5]], []]}, "a finding's peak and voxels"),
        ({"greatest": [[["high", 3]], []]}, "for the number 'peak'"),
        ({"greatest": [1, []]}, "no list 'greatest'"),
        ({"voxels": None}, "no list 'voxels'"),
    ],
)
def test_what_somebody_broke_is_named(change, message):
    values = HealthyFindings.of([[(0.5, 10)], []]).to_dict() | change
    with pytest.raises(ValueError, match=message):
        HealthyFindings.from_dict(values)


def test_spread():
    assert Spread.of([3, 1, 8]) == Spread(3, 1, 8)
