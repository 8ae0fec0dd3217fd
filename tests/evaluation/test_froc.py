import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainuad.evaluation import Froc, LesionCounts, find_lesions, match_lesions, scan_froc

THRESHOLDS = (0.2, 0.5, 0.8, 1.1)


def scan(seed, share=0.02):
    rng = np.random.default_rng(seed)
    lesion = rng.random((9, 8, 7)) < share
    map = (rng.random(lesion.shape) + 0.3 * lesion).astype(np.float32)
    image, brain = rng.random(lesion.shape) + lesion * rng.random(), np.ones(lesion.shape)
    return map, find_lesions(lesion, voxel_ml=0.06, image=image, brain=brain)


@settings(max_examples=20, deadline=None)
@given(
    seeds=st.lists(st.integers(0, 1000), min_size=1, max_size=4, unique=True),
    min_overlap=st.sampled_from([0, 0.1, 0.5]),
    min_voxels=st.integers(1, 3),
)
def test_the_curve_passes_through_the_figures_at_each_threshold(seeds, min_overlap, min_voxels):
    rule = {"min_overlap": min_overlap, "min_voxels": min_voxels}
    scans = [scan(seed) for seed in seeds]
    first, *rest = (scan_froc(map, lesions, THRESHOLDS, **rule) for map, lesions in scans)
    pooled = sum(rest, first)
    for i, threshold in enumerate(THRESHOLDS):
        matches = [match_lesions(map > np.float32(threshold), lesions, **rule) for map, lesions in scans]
        counts = sum((match.counts for match in matches), LesionCounts())
        assert pooled.false_positives_a_scan()[i] == counts.false_positives / len(seeds)
        np.testing.assert_equal(pooled.sensitivity()[i], counts.sensitivity)
        small = sum((match.by_size()["< 0.1 mL"] for match in matches), LesionCounts())
        np.testing.assert_equal(pooled.sensitivity("< 0.1 mL")[i], small.sensitivity)
        clear = sum((match.by_contrast()["> 2 SD"] for match in matches), LesionCounts())
        np.testing.assert_equal(pooled.sensitivity("> 2 SD")[i], clear.sensitivity)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), axis=st.integers(0, 2))
def test_monotone_maps_and_flips_change_nothing(seed, axis):
    map, lesions = scan(seed)
    expected = scan_froc(map, lesions, THRESHOLDS)
    flipped = find_lesions(np.flip(lesions.labels > 0, axis), voxel_ml=lesions.voxel_ml)
    for other in (
        scan_froc(np.flip(map, axis), flipped, THRESHOLDS),
        scan_froc(np.exp(map.astype(np.float64)), lesions, np.exp(THRESHOLDS)),
    ):
        np.testing.assert_array_equal(other.sensitivity(), expected.sensitivity())
        np.testing.assert_array_equal(other.false_positives, expected.false_positives)


def test_sensitivity_at_false_positives():
    curve = Froc(
        np.array([1.0, 2.0, 3.0]), 2, np.array([0, 10, 0, 0, 0, 5, 0, 0]),
        np.array([[0, 8, 0, 0, 0, 5, 0, 0], [0, 6, 0, 0, 0, 3, 0, 0], [0, 1, 0, 0, 0, 1, 0, 0]]),
        np.array([9, 10, 2]),
    )  # fmt: skip
    assert curve.false_positives_a_scan().tolist() == [4.5, 5, 1]
    # Components merge at low thresholds: fewer false positives there, which is no merit.
    assert [curve.sensitivity_at(rate) for rate in (0.5, 1, 4.5, 4.9, 5, 100)] == [0, 0.1, 0.1, 0.1, 0.8, 0.8]
    assert curve.mean_sensitivity((1, 8)) == pytest.approx(0.45)
    assert math.isnan(curve.sensitivity_at(8, "> 10 mL"))
    assert curve.sensitivity_at(8, "0.1-1 mL") == 0.8
    assert curve.sensitivity_at(8, "0.5-1 SD") == 1.0


def test_healthy_scans_add_false_positives_only():
    map, lesions = scan(0)
    healthy = scan_froc(map, find_lesions(np.zeros(map.shape), voxel_ml=1), THRESHOLDS)
    assert np.isnan(healthy.sensitivity()).all()
    assert math.isnan(healthy.mean_sensitivity())
    alone = scan_froc(map, lesions, THRESHOLDS)
    both = alone + healthy
    np.testing.assert_array_equal(both.sensitivity(), alone.sensitivity())
    assert both.scans == 2
    assert (both.false_positives >= alone.false_positives).all()


def test_written_and_read_again():
    curve = scan_froc(*scan(1), THRESHOLDS)
    again = Froc.from_dict(json.loads(json.dumps(curve.to_dict())))
    assert again.to_dict() == curve.to_dict()
    assert (again + curve).scans == 2


def test_empty_map_and_one_voxel():
    lesion = np.zeros((3, 3, 3), dtype=bool)
    lesion[1, 1, 1] = True
    lesions = find_lesions(lesion, voxel_ml=1)
    assert scan_froc(np.zeros((3, 3, 3)), lesions, [0.0, 0.5]).found.sum() == 0
    found = scan_froc(lesion.astype(float), lesions, [0.5, 0.0, 0.5])
    assert found.thresholds.tolist() == [0, 0.5]
    assert found.sensitivity().tolist() == [1, 1]


def test_wrong_arguments():
    map, lesions = scan(0)
    with pytest.raises(ValueError, match="at least one"):
        scan_froc(map, lesions, [])
    with pytest.raises(ValueError, match="must be numbers"):
        scan_froc(map, lesions, [math.nan])
    with pytest.raises(ValueError, match="different thresholds"):
        scan_froc(map, lesions, [0.1]) + scan_froc(map, lesions, [0.2])
    with pytest.raises(ValueError, match="map holds"):
        scan_froc(np.full(map.shape, np.nan), lesions, [0.1])
