"""The native grid ends with the brain, and measures there are those of the whole grid."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from painted import map_of

from brainuad.data.cohort import Case
from brainuad.data.loading import load_native
from brainuad.data.placement import resample_map
from brainuad.detector import Detector
from brainuad.study.measures import Space, measure, model_space, native_space
from brainuad.study.protocol import NATIVE, OURS, Thresholds

AT = Thresholds({"healthy@0.01": 0.02, "validation": 0.05})


@pytest.fixture
def spaces(detector: Detector, cases: list[Case]) -> tuple[np.ndarray, Space, Space]:
    """A map, and the native space of its case twice: as it is, and as the files have it."""
    (case,) = (case for case in cases if case.subject == "patient19")
    anomaly, prepared = map_of(detector, case, "l1")
    native = load_native(case, detector.data_config)
    model = model_space(prepared, OURS, 2.0, cleaned=True)
    matrix = np.linalg.inv(prepared.affine) @ native.image.affine

    def bring(values: np.ndarray) -> np.ndarray:
        return resample_map(values, matrix, native.mask.shape) * native.mask

    cropped = native_space(prepared, native, model)
    whole = Space(
        NATIVE, native.mask, native.lesion, native.image.array, native.image.spacing, cropped.min_voxels,
        False, bring,
    )  # fmt: skip
    return anomaly.numpy(), cropped, whole


def test_measures_of_the_brain_alone_are_those_of_the_whole_grid(spaces: tuple[np.ndarray, Space, Space]) -> None:
    anomaly, cropped, whole = spaces
    assert cropped.mask.size < whole.mask.size
    assert cropped.mask.sum() == whole.mask.sum()
    found, counts = measure(cropped, anomaly, OURS, AT)
    expected, all_counts = measure(whole, anomaly, OURS, AT)
    assert found["validation"]["predicted_ml"] > 0
    assert found == {name: pytest.approx(values, rel=1e-12) for name, values in expected.items()}
    np.testing.assert_array_equal(counts.scores, all_counts.scores)
    np.testing.assert_array_equal(counts.lesion, all_counts.lesion)


def test_where_all_voxels_count_the_grid_is_whole(detector: Detector, cases: list[Case]) -> None:
    (case,) = (case for case in cases if case.subject == "patient19")
    _, prepared = map_of(detector, case, "l1")
    native = load_native(case, detector.data_config)
    model = model_space(prepared, replace(OURS, whole_grid=True), 2.0, cleaned=True)
    assert native_space(prepared, native, model).mask.shape == native.mask.shape


def test_nothing_above_a_threshold_is_an_empty_prediction(spaces: tuple[np.ndarray, Space, Space]) -> None:
    anomaly, cropped, _ = spaces
    labels, voxels = cropped.predict(cropped.bring(anomaly) > float(anomaly.max()) + 1)
    assert labels.shape == cropped.mask.shape
    assert not labels.any()
    assert not voxels.any()
