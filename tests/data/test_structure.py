"""What has a brain's structure, on real scans of one patient with a large glioma and on what is no brain."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from brainuad.config import DataConfig
from brainuad.data.atlas import PlacedScan, place_brain, place_scan, sample_brain
from brainuad.data.extract import find_brain
from brainuad.data.registration import register_to_atlas
from brainuad.data.structure import likeness
from brainuad.data.volume import Volume

FILES = Path(__file__).parent.parent / "files"
GRID = DataConfig(imageDim=(160, 192, 144), rescaleFactor=2.0, affine="used")
CONTRASTS = ("t1", "t2", "flair")


def of_patient(contrast: str) -> Volume:
    return Volume.load(FILES / f"brats01477_{contrast}_3mm.nii.gz")


def put(scan: Volume) -> PlacedScan:
    return place_scan(scan, GRID)


@pytest.mark.slow
@pytest.mark.long
def test_contrasts_of_a_patient_are_placed_alike():
    """They share one grid, so they should be laid onto the atlas by one transform."""
    found = {contrast: put(of_patient(contrast)).placement.atlas_to_scan for contrast in CONTRASTS}
    scan = of_patient("t1")
    brain = np.argwhere(scan.array > 0)
    there = np.c_[brain, np.ones(len(brain))] @ scan.affine.T
    for one, other in combinations(CONTRASTS, 2):
        apart = (there @ np.linalg.inv(found[one]).T - there @ np.linalg.inv(found[other]).T)[:, :3]
        assert np.linalg.norm(apart, axis=1).mean() < 4, (one, other)  # mm


def turned(scan: Volume, axis: str, degrees: float) -> Volume:
    """The scan with axes that say it lies another way."""
    middle = scan.affine @ [*((np.array(scan.array.shape) - 1) / 2), 1]
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler(axis, degrees, degrees=True).as_matrix()
    turn[:3, 3] = middle[:3] - turn[:3, :3] @ middle[:3]
    return Volume.from_array(scan.array, turn @ scan.affine)


def noise(scan: Volume, sigma: float) -> np.ndarray:
    values = np.random.default_rng(0).normal(size=scan.array.shape)
    return ndimage.gaussian_filter(values, sigma) if sigma else values


def in_any_order(scan: Volume) -> Volume:
    """The brain's own outline and intensities, without its structure."""
    array = np.zeros_like(scan.array)
    array[scan.array > 0] = np.random.default_rng(0).permutation(scan.array[scan.array > 0])
    return scan.with_array(array)


def noise_in_outline(scan: Volume, sigma: float = 2.0) -> Volume:
    inside = scan.array > 0
    array = np.zeros_like(scan.array)
    order = np.argsort(noise(scan, sigma)[inside])
    values = np.empty(order.size, array.dtype)
    values[order] = np.sort(scan.array[inside])
    array[inside] = values
    return scan.with_array(array)


def body(scan: Volume, shape: str, sigma: float) -> Volume:
    at = np.stack(np.meshgrid(*[np.linspace(-1, 1, length) for length in scan.array.shape], indexing="ij"))
    inside = (np.abs(at) < 0.75).all(0) if shape == "cube" else (at**2).sum(0) < 0.9
    pattern = noise(scan, sigma)
    return scan.with_array(np.where(inside, np.maximum(100 + 15 * pattern / pattern.std(), 1), 0))


LONG = pytest.mark.long


@pytest.mark.slow
@pytest.mark.parametrize(
    "fake",
    [
        pytest.param(lambda: in_any_order(of_patient("flair")), id="permuted"),
        pytest.param(lambda: noise_in_outline(of_patient("t1")), id="noise in a brain's outline", marks=LONG),
        pytest.param(lambda: body(of_patient("t1"), "ellipsoid", 0), id="ellipsoid", marks=LONG),
        pytest.param(lambda: body(of_patient("t1"), "ellipsoid", 4), id="smooth ellipsoid", marks=LONG),
        pytest.param(lambda: body(of_patient("t1"), "cube", 2), id="cube", marks=LONG),
        pytest.param(lambda: turned(of_patient("t1"), "x", 180), id="upside down"),
        pytest.param(lambda: turned(of_patient("t1"), "y", 90), id="on its side", marks=LONG),
        pytest.param(lambda: turned(of_patient("t2"), "z", 90), id="sideways", marks=LONG),
    ],
)
def test_what_is_no_brain_or_lies_another_way_is_refused(fake):
    with pytest.raises(ValueError, match="shows no brain, or none that could be registered"):
        put(fake())


@pytest.mark.slow
def test_likeness_knows_no_units_and_no_bias_field():
    scan = of_patient("t2")
    brain = find_brain(scan).mask
    placement, on_grid = place_brain(scan.with_array(brain), register_to_atlas(scan), spacing=2.0)
    image = placement.cut(sample_brain(scan, placement, on_grid), on_grid)
    mask = placement.cut(on_grid, on_grid).inside
    found = likeness(image, mask)
    assert likeness(image.with_array(image.array * 40), mask) == pytest.approx(found, rel=1e-3)
    field = np.exp(np.linspace(-0.4, 0.4, mask.shape[0]))[:, None, None]
    assert likeness(image.with_array(image.array * field), mask) == pytest.approx(found, rel=0.15)


def test_nothing_deep_or_nothing_that_varies_has_no_likeness(labelled_brain):
    image, mask, _ = labelled_brain
    inside = mask.array > 0.5
    assert likeness(image, inside) > 1.5
    assert np.isnan(likeness(image.with_array(inside.astype(np.float32)), inside))
    thin = np.zeros_like(inside)
    thin[40:44] = inside[40:44]
    assert np.isnan(likeness(image, thin))


@pytest.mark.parametrize("contrast", ["t2", "flair"])
def test_any_contrast_is_like_a_brain(contrast):
    scan = Volume.load(FILES / f"mslub19_{contrast}_atlas_4mm.nii.gz")
    assert likeness(scan, scan.array > 0) > 1.1
