import math
from dataclasses import astuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from brainuad.evaluation import (
    CONTRAST_CLASSES,
    SIZE_CLASSES,
    LesionCounts,
    contrast_class,
    find_lesions,
    match_components,
    match_lesions,
    size_class,
)

CUBE = np.ones((3, 3, 3))
volumes = hnp.arrays(bool, (6, 7, 5), elements=st.sampled_from([False, False, False, True]))


def counts_by_loops(prediction, lesion, min_overlap, min_voxels):
    """The rule spelled out a component at a time, with SciPy's labels."""
    predicted, m = ndimage.label(prediction, CUBE)
    drawn, n = ndimage.label(lesion, CUBE)
    kept = [predicted == i for i in range(1, m + 1) if (predicted == i).sum() >= min_voxels]
    union = np.any(kept, axis=0) if kept else np.zeros_like(lesion)

    def lies_on(part, whole):
        common = (part & whole).sum()
        return common > 0 and common / part.sum() >= min_overlap

    found = sum(lies_on(drawn == i, union) for i in range(1, n + 1))
    return LesionCounts(n, int(found), len(kept), int(sum(lies_on(part, lesion) for part in kept)))


@settings(max_examples=60, deadline=None)
@given(prediction=volumes, lesion=volumes, min_overlap=st.sampled_from([0, 0.1, 0.5, 1]), min_voxels=st.integers(1, 4))
def test_counts_equal_those_of_a_loop_over_components(prediction, lesion, min_overlap, min_voxels):
    match = match_lesions(prediction, find_lesions(lesion, voxel_ml=1), min_overlap=min_overlap, min_voxels=min_voxels)
    assert match.counts == counts_by_loops(prediction, lesion, min_overlap, min_voxels)
    labels, count = ndimage.label(prediction, CUBE)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    labels[np.isin(labels, np.flatnonzero(sizes < min_voxels) + 1)] = 0
    sizes[sizes < min_voxels] = 0
    known = match_components(labels, sizes, match.lesions, min_overlap=min_overlap)
    assert known.counts == match.counts
    np.testing.assert_array_equal(known.overlap, match.overlap)
    assert sum(match.by_size().values(), LesionCounts()) == match.counts


@settings(max_examples=30, deadline=None)
@given(prediction=volumes, lesion=volumes, axis=st.integers(0, 2))
def test_flips_and_transposes_change_nothing(prediction, lesion, axis):
    def counts(predicted, drawn):
        return match_lesions(predicted, find_lesions(drawn, voxel_ml=0.008)).by_size()

    expected = counts(prediction, lesion)
    assert counts(np.flip(prediction, axis), np.flip(lesion, axis)) == expected
    assert counts(prediction.T, lesion.T) == expected
    assert counts(torch.from_numpy(prediction), torch.from_numpy(lesion)) == expected


@pytest.fixture
def lesion():
    """Three lesions of 8, 27 and 1 voxels; the first two touch by no corner."""
    lesion = np.zeros((12, 12, 12), dtype=bool)
    lesion[1:3, 1:3, 1:3] = True
    lesion[5:8, 5:8, 5:8] = True
    lesion[10, 10, 10] = True
    return lesion


def test_a_tenth_of_a_lesion_is_enough(lesion):
    lesions = find_lesions(lesion, voxel_ml=0.008)
    assert lesions.voxels.tolist() == [8, 27, 1]
    prediction = np.zeros_like(lesion)
    prediction[5, 5, 5:7] = True  # 2 of 27: too few
    match = match_lesions(prediction, lesions)
    assert match.found.tolist() == [False, False, False]
    assert match.counts.precision == 1
    assert match_lesions(prediction, lesions, min_overlap=0).found.tolist() == [False, True, False]
    prediction[5, 6, 5] = True  # 3 of 27
    match = match_lesions(prediction, lesions)
    assert match.overlap.tolist() == [0, 3 / 27, 0]
    assert match.counts == LesionCounts(3, 1, 1, 1)


@pytest.mark.parametrize("voxels", [10, 30, 70, 110])
def test_exactly_a_tenth_is_enough_whatever_the_rounding(voxels):
    lesion = np.zeros((voxels, 1, 1), dtype=bool)
    lesion[:] = True
    prediction = np.zeros_like(lesion)
    prediction[: voxels // 10] = True
    assert match_lesions(prediction, find_lesions(lesion, voxel_ml=1)).found.all()


def test_calling_everything_lesion_earns_nothing(lesion):
    match = match_lesions(np.ones_like(lesion), find_lesions(lesion, voxel_ml=1))
    assert (match.counts.sensitivity, match.counts.precision, match.counts.f1) == (1, 0, 0)


@settings(max_examples=60, deadline=None)
@given(lesion=hnp.arrays(bool, st.tuples(*[st.integers(1, 4)] * 3)))
def test_volumes_of_any_shape(lesion):
    labels = find_lesions(lesion, voxel_ml=1).labels
    expected, count = ndimage.label(lesion, CUBE)
    assert len({*zip(labels[lesion].tolist(), expected[lesion].tolist(), strict=True)}) == count == labels.max()
    assert labels.shape == lesion.shape


def test_corners_connect():
    lesion = np.zeros((4, 4, 4), dtype=bool)
    lesion[0, 0, 0] = lesion[1, 1, 1] = lesion[3, 3, 3] = True
    assert find_lesions(lesion, voxel_ml=1).voxels.tolist() == [2, 1]


@pytest.mark.parametrize(
    ("prediction", "lesion", "counts", "f1"),
    [
        ([0, 0, 0], [0, 0, 0], (0, 0, 0, 0), math.nan),
        ([0, 0, 0], [1, 0, 1], (2, 0, 0, 0), 0),
        ([1, 0, 1], [0, 0, 0], (0, 0, 2, 0), 0),
        ([1, 0, 0], [0, 0, 1], (1, 0, 1, 0), 0),
        ([1, 0, 1], [0, 0, 1], (1, 1, 2, 1), 2 / 3),
        ([0, 0, 1], [0, 0, 1], (1, 1, 1, 1), 1),
    ],
)
def test_edge_cases(prediction, lesion, counts, f1):
    shape = (3, 1, 1)
    lesions = find_lesions(np.reshape(lesion, shape), voxel_ml=1)
    match = match_lesions(np.reshape(prediction, shape), lesions)
    assert astuple(match.counts) == counts
    assert match.counts.f1 == pytest.approx(f1, nan_ok=True)
    assert match.counts.false_positives == counts[2] - counts[3]
    assert math.isnan(match.counts.sensitivity) == (counts[0] == 0)
    assert math.isnan(match.counts.precision) == (counts[2] == 0)


def test_size_classes():
    assert [SIZE_CLASSES[i] for i in size_class([0.05, 0.1, 0.99, 1, 9.9, 10, 300])] == [
        "< 0.1 mL", "0.1-1 mL", "0.1-1 mL", "1-10 mL", "1-10 mL", "> 10 mL", "> 10 mL",
    ]  # fmt: skip
    lesion = np.zeros((20, 20, 20), dtype=bool)
    lesion[:5, :5, :5] = True  # 1 mL in voxels of 2 mm
    lesion[10, 10, 10] = True
    prediction = lesion.copy()
    prediction[10, 10, 10] = False
    prediction[15:17, 15:17, 15:17] = True
    by_size = match_lesions(prediction, find_lesions(lesion, voxel_ml=0.008)).by_size()
    assert by_size == {
        "< 0.1 mL": LesionCounts(1, 0, 1, 0),
        "0.1-1 mL": LesionCounts(),
        "1-10 mL": LesionCounts(1, 1, 1, 1),
        "> 10 mL": LesionCounts(),
    }


def test_contrast_is_that_to_the_tissue_around():
    rng = np.random.default_rng(0)
    brain = np.zeros((30, 30, 30), dtype=bool)
    brain[2:-2, 2:-2, 2:-2] = True
    image = rng.normal(0.5, 0.1, brain.shape)
    lesion = np.zeros_like(brain)
    lesion[8:12, 8:12, 8:12] = True
    lesion[18:20, 18:20, 18:20] = True
    image[8:12, 8:12, 8:12] += 0.3
    image[18:20, 18:20, 18:20] -= 0.1
    image[~brain] = 9  # of no weight
    lesions = find_lesions(lesion, voxel_ml=0.008, image=image, brain=brain)
    assert lesions.contrast == pytest.approx([3, -1], abs=0.4)

    healthy = brain & ~lesion
    distance = ndimage.distance_transform_cdt(~(lesion & (np.arange(30) < 15)), "chessboard")
    shell = healthy & (distance > 1) & (distance <= 3)
    expected = (image[8:12, 8:12, 8:12].mean() - image[shell].mean()) / image[healthy].std()
    assert lesions.contrast[0] == pytest.approx(expected)

    match = match_lesions(lesion & (np.arange(30) < 15), lesions)
    classes = match.by_contrast()
    assert classes[CONTRAST_CLASSES[3]] == LesionCounts(1, 1)
    assert sum(classes.values(), LesionCounts()) == LesionCounts(2, 1)
    assert [row["found"] for row in match.records()] == [True, False]
    assert match.records()[0] == {
        "lesion": 1, "volume_ml": 0.512, "contrast": lesions.contrast[0], "overlap": 1.0, "found": True,
    }  # fmt: skip


def test_contrast_without_tissue_or_spread_is_undefined():
    lesion = np.zeros((5, 5, 5), dtype=bool)
    lesion[2, 2, 2] = True
    image = np.random.default_rng(0).random((5, 5, 5))
    for scan, brain in ((image, lesion), (np.ones_like(image), np.ones_like(lesion))):
        lesions = find_lesions(lesion, voxel_ml=1, image=scan, brain=brain)
        assert np.isnan(lesions.contrast).all()
        assert contrast_class(lesions.contrast).tolist() == [-1]
    assert not len(find_lesions(np.zeros_like(lesion), voxel_ml=1, image=image, brain=lesion))


def test_wrong_arguments(lesion):
    lesions = find_lesions(lesion, voxel_ml=1)
    with pytest.raises(ValueError, match="prediction has shape"):
        match_lesions(np.zeros((2, 2, 2)), lesions)
    with pytest.raises(ValueError, match="prediction has shape"):
        match_components(np.zeros((2, 2, 2), int), np.zeros(0, int), lesions)
    with pytest.raises(ValueError, match=r"got 1\.5"):
        match_lesions(lesion, lesions, min_overlap=1.5)
    with pytest.raises(ValueError, match="needs the brain mask"):
        find_lesions(lesion, voxel_ml=1, image=np.zeros(lesion.shape))
    with pytest.raises(ValueError, match="image has shape"):
        find_lesions(lesion, voxel_ml=1, image=np.zeros((2, 2, 2)), brain=lesion)
