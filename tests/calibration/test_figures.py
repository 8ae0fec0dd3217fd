"""A calibration in and out of JSON, and what it answers."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import percentileofscore

from brainuad.calibration import Calibration, HealthyAppearance, HealthyScan, calibration_of
from brainuad.errors import InputError
from brainuad.scoring.health import MOMENT_MAPS

# as the first release of the shipped model had it
FIRST_FORMAT = {
    "scans": 15,
    "voxels": 2898739,
    "postprocess": True,
    "seed": 0,
    "thresholds": {"l1": {"0.1": 0.0889, "0.05": 0.0997, "0.01": 0.1286, "0.001": 0.1899}},
}


def healthy_scans(count: int = 6) -> list[HealthyScan]:
    rng = np.random.default_rng(0)
    mask = np.zeros((30, 36, 24), bool)
    mask[4:-4, 4:-4, 4:-4] = True
    found = []
    for _ in range(count):
        image = np.clip(rng.normal(0.6, 0.1, mask.shape), 0, 1) * mask
        maps = {name: rng.gamma(2, rng.uniform(0.09, 0.11), mask.shape) * mask for name in ("l1", "ssim_ensemble")}
        raw = {name: maps.get(name, image) for name in MOMENT_MAPS}
        found.append(HealthyScan.of(maps, raw, image, mask, rng.normal(1300, 50), rng.normal(0.75, 0.02)))
    return found


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return calibration_of(healthy_scans(), list("abcdef"), made_from="raw scans", left_out=["broken"])


def changed(values: Any, path: str, value: Any) -> Any:
    """Return plain values with the entry at a dotted path replaced."""
    values = json.loads(json.dumps(values))
    *above, last = path.split("/")
    place = values
    for name in above:
        place = place[name]
    place[last] = value
    return values


def test_round_trip_through_json(calibration: Calibration) -> None:
    text = json.dumps(calibration.to_dict(), allow_nan=False)
    assert Calibration.from_dict(json.loads(text)) == calibration
    assert calibration.subjects == tuple("abcdef")
    assert calibration.left_out == ("broken",)
    assert calibration.voxels == 6 * 22 * 28 * 16
    assert len(text) < 40_000


def test_the_first_format_can_be_read() -> None:
    calibration = Calibration.from_dict(FIRST_FORMAT)
    assert calibration.scans == 15
    assert calibration.threshold("l1", 0.01) == 0.1286
    assert calibration.interval("l1", 0.01) is None
    assert calibration.percentile("l1", 0.2) is None
    assert calibration.appearance == HealthyAppearance()
    assert Calibration.from_dict(json.loads(json.dumps(calibration.to_dict()))) == calibration


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("format", 3, "format 3; this version reads up to 2"),
        ("format", "2", "has format '2'"),
        ("scans", None, "'None' for the number 'scans'"),
        ("scans", True, "'True' for the number 'scans'"),
        ("voxels", float("nan"), "'nan' for the number 'voxels'"),
        ("voxels", 10**400, "for the number 'voxels'"),
        ("thresholds", [], "no table 'thresholds'"),
        ("thresholds/l1", {}, "no threshold for l1"),
        ("thresholds/l1", {"0": 1}, "'0' for a false-positive fraction"),
        ("thresholds/l1", {"x": 1}, "'x' for a false-positive fraction"),
        ("thresholds/l1/0.1", "high", "'high' for the number '0.1'"),
        ("intervals/l1/0.1", [1], "1 ends of an interval"),
        ("intervals/l1/0.1", 1, "no list '0.1'"),
        ("scan_scores", [1], "no table 'scan_scores'"),
        ("scan_scores/l1", [float("inf")], "'inf' for the number 'l1'"),
        ("subjects", "abc", "no list 'subjects'"),
        ("looks", 1, "no table 'looks'"),
        ("looks/quantiles", [0, 1], "2 quantiles of intensity, not 51"),
        ("looks/regions", "??", "damaged regions"),
        ("looks/regions", "AAAA", "damaged regions"),
        ("looks/shape", [10**6, 10**6, 10**6], "damaged regions"),
        ("looks/contrasts", None, "no list 'contrasts'"),
    ],
)
def test_what_somebody_broke_is_named(calibration: Calibration, path: str, value: Any, message: str) -> None:
    values = changed(calibration.to_dict(), path, value)
    with pytest.raises(ValueError, match=re.escape(message)):
        Calibration.from_dict(values)


@pytest.mark.parametrize("values", [None, [], 1, "x"])
def test_no_object(values: Any) -> None:
    with pytest.raises(ValueError, match="holds no object"):
        Calibration.from_dict(values)


@given(st.floats(0.001, 0.1), st.floats(0.001, 0.1))
def test_thresholds_between_fractions_are_in_order(one: float, other: float) -> None:
    calibration = Calibration.from_dict(FIRST_FORMAT)
    low, high = sorted((one, other))
    assert calibration.threshold("l1", low) >= calibration.threshold("l1", high) - 1e-12
    assert 0.0889 <= calibration.threshold("l1", low) <= 0.1899


def test_what_was_not_calibrated_is_refused(calibration: Calibration) -> None:
    with pytest.raises(InputError, match="no calibration for l2"):
        calibration.threshold("l2", 0.01)
    with pytest.raises(InputError, match=r"no threshold for 0\.5\. Choose 0\.001 to 0\.1"):
        calibration.interval("l1", 0.5)


def test_intervals_hold_their_threshold(calibration: Calibration) -> None:
    for fraction in (0.1, 0.03, 0.01, 0.001):
        low, high = calibration.interval("l1", fraction)
        assert low <= calibration.threshold("l1", fraction) <= high
        assert low < high


def test_percentiles_are_those_of_scipy(calibration: Calibration) -> None:
    scores = calibration.scan_scores["l1"]
    for value in (0.0, scores[0], scores[3], 0.2, 9.0):
        assert calibration.percentile("l1", value) == pytest.approx(percentileofscore(scores, value, kind="mean"))
    assert calibration.percentile("unknown", 0.2) is None


def test_one_scan_is_not_enough() -> None:
    scan = healthy_scans()[0]
    with pytest.raises(ValueError, match="1 scan cannot be compared"):
        calibration_of([scan], ["a"])
