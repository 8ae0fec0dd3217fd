import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.distance import directed_hausdorff
from sklearn import metrics as sklearn_metrics

from brainuad.evaluation import (
    Confusion,
    confusion,
    dice,
    hausdorff,
    reconstruction_errors,
    scan_score,
    slice_detection,
    slice_overlap,
)

volumes = hnp.arrays(bool, st.tuples(*[st.integers(1, 5)] * 3))
RATES = ("dice", "precision", "recall", "specificity", "accuracy", "false_positive_rate", "false_discovery_rate")


def test_published_figures(reference, published):
    lesion = reference["lesion"]
    assert dice(reference["binary"], lesion) == pytest.approx(published["dice_after_component_filter"], abs=1e-9)
    assert hausdorff(reference["binary"], lesion) == pytest.approx(published["hausdorff_vox"], abs=1e-6)
    assert scan_score(reference["median"], reference["mask"]) == pytest.approx(published["sample_score"], abs=1e-6)


def test_confusion_equals_scikit_learn():
    rng = np.random.default_rng(0)
    prediction, lesion = rng.random((2, 6, 5, 4)) < 0.3
    counts = confusion(prediction, lesion)
    flat = lesion.ravel(), prediction.ravel()
    tn, fp, fn, tp = sklearn_metrics.confusion_matrix(*flat).ravel()
    assert counts == Confusion(tp, fp, tn, fn)
    assert counts.dice == dice(prediction, lesion) == pytest.approx(sklearn_metrics.f1_score(*flat))
    assert counts.precision == pytest.approx(sklearn_metrics.precision_score(*flat))
    assert counts.recall == pytest.approx(sklearn_metrics.recall_score(*flat))
    assert counts.specificity == pytest.approx(sklearn_metrics.recall_score(*flat, pos_label=False))
    assert counts.accuracy == pytest.approx(sklearn_metrics.accuracy_score(*flat))
    assert counts.false_positive_rate == pytest.approx(1 - counts.specificity)
    assert counts.false_discovery_rate == pytest.approx(1 - counts.precision)


@pytest.mark.parametrize(
    ("prediction", "lesion", "undefined"),
    [
        ([0, 0], [0, 0], {"dice", "precision", "recall", "false_discovery_rate"}),
        ([0, 0], [1, 0], {"precision", "false_discovery_rate"}),
        ([1, 0], [0, 0], {"recall"}),
        ([1, 0], [1, 1], {"specificity", "false_positive_rate"}),
        ([], [], set(RATES)),
    ],
)
def test_undefined_rates_are_nan(prediction, lesion, undefined):
    counts = confusion(np.array(prediction), np.array(lesion))
    assert {name for name in RATES if math.isnan(getattr(counts, name))} == undefined


@settings(max_examples=50, deadline=None)
@given(prediction=volumes, seed=st.integers(0, 1000))
def test_dice_is_symmetric_and_one_with_itself(prediction, seed):
    lesion = np.random.default_rng(seed).random(prediction.shape) < 0.4
    np.testing.assert_equal(dice(prediction, lesion), dice(lesion, prediction))
    assert math.isnan(dice(prediction, prediction)) or dice(prediction, prediction) == 1


@settings(max_examples=50, deadline=None)
@given(prediction=volumes, seed=st.integers(0, 1000))
def test_hausdorff_equals_scipy(prediction, seed):
    lesion = np.random.default_rng(seed).random(prediction.shape) < 0.2
    distance = hausdorff(prediction, lesion)
    if not prediction.any() or not lesion.any():
        assert math.isnan(distance)
    else:
        points = np.argwhere(prediction), np.argwhere(lesion)
        expected = max(directed_hausdorff(*points)[0], directed_hausdorff(*points[::-1])[0])
        assert distance == pytest.approx(expected)


def test_reconstruction_errors():
    image = np.array([0.0, 1.0, 0.5, 0.5], np.float32)
    reconstruction = np.array([0.5, 0.0, 0.5, 0.0], np.float32)
    errors = reconstruction_errors(image, reconstruction, np.array([0, 1, 0, 0]))
    assert errors == pytest.approx(
        {"l1": 0.5, "l1_lesion": 1, "l1_healthy": 1 / 3, "l2": 0.375, "l2_lesion": 1, "l2_healthy": 1 / 6}
    )
    without = reconstruction_errors(image, torch.from_numpy(reconstruction), np.zeros(4))
    assert math.isnan(without["l1_lesion"])
    assert without["l1_healthy"] == without["l1"]


def test_scan_score_without_brain():
    assert math.isnan(scan_score(np.ones((2, 2, 2)), np.zeros((2, 2, 2))))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slice_overlap_averages_over_lesion_slices(axis):
    rng = np.random.default_rng(0)
    lesion = rng.random((5, 6, 7)) < 0.1
    prediction = rng.random((5, 6, 7)) < 0.2
    index = [slice(None)] * 3
    expected = {name: [] for name in ("dice", "precision", "recall")}
    for number in range(lesion.shape[axis]):
        index[axis] = number
        if lesion[tuple(index)].any():
            counts = confusion(prediction[tuple(index)], lesion[tuple(index)])
            for name, values in expected.items():
                values.append(getattr(counts, name))
    actual = slice_overlap(prediction, lesion, axis)
    assert actual == pytest.approx({name: np.nanmean(values) for name, values in expected.items()})


def test_slices_are_axial_unless_told_otherwise():
    rng = np.random.default_rng(0)
    lesion, prediction = rng.random((2, 5, 6, 7)) < 0.1
    map, mask = rng.random((5, 6, 7)), np.ones((5, 6, 7), dtype=bool)
    assert slice_overlap(prediction, lesion) == slice_overlap(prediction, lesion, axis=2)
    assert slice_detection(map, lesion, mask) == slice_detection(map, lesion, mask, axis=2)


def test_slice_detection():
    map = np.zeros((4, 4, 6))
    lesion = np.zeros((4, 4, 6), dtype=bool)
    mask = np.zeros((4, 4, 6), dtype=bool)
    mask[1:3, 1:3, :5] = True  # the last slice has no brain
    lesion[1, 1, [1, 3]] = True
    map[1:3, 1:3] = [0.1, 0.4, 0.2, 0.3, 0.0, 9.0]
    assert slice_detection(map, lesion, mask) == {"auroc": 1.0, "average_precision": 1.0}
    map[0, 0] = 5  # outside the brain: of no weight
    map[1:3, 1:3, 0] = 0.35
    figures = slice_detection(map, lesion, mask)
    means, truth = [0.35, 0.4, 0.2, 0.3, 0.0], [0, 1, 0, 1, 0]
    assert figures["auroc"] == pytest.approx(sklearn_metrics.roc_auc_score(truth, means))
    assert figures["average_precision"] == pytest.approx(sklearn_metrics.average_precision_score(truth, means))


def test_slices_without_lesion_or_brain():
    nothing = np.zeros((3, 3, 3))
    for figures in (slice_overlap(nothing, nothing), slice_detection(nothing, nothing, nothing)):
        assert all(math.isnan(value) for value in figures.values())


def test_wrong_shapes():
    with pytest.raises(ValueError, match=r"prediction has shape \(2, 2\), expected \(4,\)"):
        dice(np.zeros((2, 2)), np.zeros(4))
    with pytest.raises(ValueError, match=r"reconstruction has shape \(1,\), image \(4,\)"):
        reconstruction_errors(np.zeros(4), np.zeros(1), np.zeros(4))
