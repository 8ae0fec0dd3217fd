"""Which scans look different from healthy ones: real scans of several kinds, and healthy ones that went wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from scipy.stats import wasserstein_distance
from tiny import FILES, tiny_detector

from brainuad.calibration import HealthyAppearance, appearance_of
from brainuad.calibration.appearance import LEVELS, told_apart
from brainuad.data.cohort import manifest_cases
from brainuad.data.loading import load_case
from brainuad.detector import load_model

Image = tuple[np.ndarray, np.ndarray]


def placed(dataset: str) -> list[Image]:
    """Scans of the demo on the grid of the tiny model, and their masks."""
    cases = manifest_cases(Path(str(files("brainuad.assets") / "demo" / "manifest.csv")))
    config = tiny_detector().data_config
    loaded = [load_case(case, config) for case in cases if case.dataset == dataset]
    return [(case.image, case.mask) for case in loaded]


@pytest.fixture(scope="module")
def healthy() -> list[Image]:
    return placed("IXI healthy")


@pytest.fixture(scope="module")
def appearance(healthy: list[Image]) -> HealthyAppearance:
    return HealthyAppearance.of(
        [appearance_of(*scan, 1300 + 20 * i, 0.74 + 0.005 * i) for i, scan in enumerate(healthy)]
    )


def another_contrast(name: str) -> Image:
    array = np.asarray(nib.load(FILES / f"mslub19_{name}_atlas_4mm.nii.gz").dataobj, dtype=np.float32)
    return np.clip((array - 1) / 254, 0, 1), array > 0


def test_round_trip_through_json(appearance: HealthyAppearance) -> None:
    again = HealthyAppearance.from_dict(json.loads(json.dumps(appearance.to_dict())))
    assert again == appearance
    np.testing.assert_array_equal(again.unpacked(), appearance.unpacked())
    assert appearance.shape == (40, 48, 36)


def test_regions_are_dark_and_bright_parts_of_the_brain(healthy: list[Image], appearance: HealthyAppearance) -> None:
    middle, bright = appearance.unpacked()
    assert not (middle & bright).any()
    for image, mask in healthy:
        assert mask[bright].mean() > 0.99
        assert np.median(image[bright]) > np.median(image[middle]) > np.median(image[mask & ~middle & ~bright])


def test_healthy_scans_look_healthy(healthy: list[Image]) -> None:
    for left_out, scan in enumerate(healthy):
        others = HealthyAppearance.of([appearance_of(*other) for i, other in enumerate(healthy) if i != left_out])
        assert others.warnings(appearance_of(*scan)) == []


def test_a_scan_with_lesions_is_of_the_right_kind() -> None:
    detector = load_model("lite-t1")
    assert detector.calibration is not None
    cases = manifest_cases(Path(str(files("brainuad.assets") / "demo" / "manifest.csv")))
    ill = [case for case in cases if case.lesion is not None and case.subject != "BraTS2021_01484"]
    assert len(ill) == 5  # a tumour may take all contrast away
    for case in ill:
        scan = load_case(case, detector.data_config)
        warnings = detector.calibration.appearance.warnings(appearance_of(scan.image, scan.mask))
        assert not any("another kind of scan" in warning for warning in warnings), case.subject


@pytest.mark.parametrize("name", ["t2", "flair"])
def test_another_kind_of_scan_is_noticed(appearance: HealthyAppearance, name: str) -> None:
    (warning,) = appearance.warnings(appearance_of(*another_contrast(name)))
    assert "another kind of scan than the model's" in warning


def test_another_kind_is_noticed_whatever_kind_the_model_is_of(healthy: list[Image]) -> None:
    inverted = HealthyAppearance.of([appearance_of(np.where(mask, 1 - image, 0), mask) for image, mask in healthy])
    assert "another kind" in inverted.warnings(appearance_of(*healthy[0]))[0]


def test_contrast_tells_nothing_where_healthy_scans_have_none(appearance: HealthyAppearance) -> None:
    """As on FLAIR, where grey and white matter are alike."""
    none = replace(appearance, contrasts=(-0.03, 0.0, *appearance.contrasts[2:]))
    warnings = none.warnings(appearance_of(*another_contrast("t2")))
    assert warnings
    assert not any("another kind" in warning for warning in warnings)


def test_other_intensities_are_noticed(healthy: list[Image], appearance: HealthyAppearance) -> None:
    image, mask = healthy[0]
    (warning,) = appearance.warnings(appearance_of(image**2, mask))
    assert "thresholds may not hold" in warning


def thick(image: np.ndarray) -> np.ndarray:
    """Slices of three voxels, as a scan of such slices is resampled."""
    places = np.arange(image.shape[2]) / 3
    low = np.minimum(places.astype(int), image.shape[2] // 3 - 2)
    slices = ndimage.uniform_filter1d(image, 3, axis=2)[:, :, 1::3]
    share = (places - low).astype(np.float32)
    return slices[:, :, low] * (1 - share) + slices[:, :, low + 1] * share


def test_thick_slices_and_noise_are_noticed(healthy: list[Image], appearance: HealthyAppearance) -> None:
    image, mask = healthy[0]
    noise = 0.15 * np.random.default_rng(0).normal(size=image.shape)
    for changed, words in (
        (thick(image), "blurred or in thick slices along"),
        (np.clip(image + noise, 0, 1), "noisy along left to right, back to front"),
    ):
        warnings = appearance.warnings(appearance_of(changed * mask, mask))
        assert any(words in warning and "bottom to top" in warning for warning in warnings), words


def test_a_calibration_of_before_knows_no_detail(healthy: list[Image], appearance: HealthyAppearance) -> None:
    before = {name: value for name, value in appearance.to_dict().items() if name != "detail"}
    image, mask = healthy[0]
    warnings = HealthyAppearance.from_dict(json.loads(json.dumps(before))).warnings(
        appearance_of(thick(image) * mask, mask)
    )
    assert not any("thick slices" in warning for warning in warnings)


def test_distances_are_those_of_wasserstein(healthy: list[Image], appearance: HealthyAppearance) -> None:
    values = [image[mask] for image, mask in healthy]
    quantiles = np.array([np.quantile(ours, LEVELS) for ours in values])
    rest = [np.delete(quantiles, i, 0).mean(0) for i in range(len(values))]
    exact = [np.mean(np.abs(ours - others)) for ours, others in zip(quantiles, rest, strict=True)]
    np.testing.assert_allclose(appearance.distances, sorted(exact), atol=1e-5)
    one, other = (appearance_of(*scan).quantiles for scan in healthy[:2])
    assert np.abs(one - other).mean() == pytest.approx(wasserstein_distance(values[0], values[1]), abs=2e-3)


@pytest.mark.parametrize(
    ("brain_ml", "alignment", "words"),
    [(600, 0.75, "brain volume 600 mL is outside"), (2500, 0.75, "2500 mL"), (1350, 0.4, "registration failed")],
)
def test_brain_volume_and_alignment(
    healthy: list[Image], appearance: HealthyAppearance, brain_ml: float, alignment: float, words: str
) -> None:
    assert appearance.warnings(appearance_of(*healthy[0], 1350, 0.75)) == []
    (warning,) = appearance.warnings(appearance_of(*healthy[0], brain_ml, alignment))
    assert words in warning


def test_a_value_just_beyond_a_limit_is_rounded_to_be_told_from_it() -> None:
    assert told_apart(0.659, 0.661, digits=2) == ["0.659", "0.661"]
    assert told_apart(0.4, 0.66, digits=2) == ["0.40", "0.66"]
    assert told_apart(899.8, 900.0, 2100.0, digits=0) == ["899.8", "900.0", "2100.0"]
    assert told_apart(float("nan"), 0.5, digits=2) == ["nan", "0.50"]


def test_without_a_cohort_only_poor_alignment_is_known(healthy: list[Image]) -> None:
    assert HealthyAppearance().warnings(appearance_of(*healthy[0], 100, 0.6)) == []
    assert "below 0.50" in HealthyAppearance().warnings(appearance_of(*healthy[0], 100, 0.49))[0]
