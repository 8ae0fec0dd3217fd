from pathlib import Path

import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from scipy import ndimage

from brainuad.data.extract import close_sulci, correct_bias, find_brain
from brainuad.data.volume import Volume

FILES = Path(__file__).parent.parent / "files"
DEMO = Path(__file__).parents[2] / "src/brainuad/assets/demo"


def test_one_level_leaves_a_tumour_that_four_flatten():
    volume, mask, lesion = (Volume.load(DEMO / f"BraTS2021_01484_{kind}.nii.gz") for kind in ("t1", "mask", "seg"))
    brain, tumour = mask.array > 0, lesion.array > 0.5

    def contrast(array: np.ndarray) -> float:
        return float(np.median(array[tumour]) - np.median(array[brain & ~tumour])) / array[brain].std()

    before = contrast(volume.array)
    assert before < -1
    assert contrast(correct_bias(volume, brain, 1)) == pytest.approx(before, rel=0.1)
    assert abs(contrast(correct_bias(volume, brain, 4))) < 0.2 * abs(before)


@pytest.mark.long
def test_a_known_bias_field_is_removed():
    volume = Volume.load(DEMO / "patient07_t1.nii.gz")
    mask = Volume.load(DEMO / "patient07_mask.nii.gz").array > 0
    x, y, z = (np.linspace(-1, 1, size) for size in volume.array.shape)
    field = np.exp(0.35 * x[:, None, None] - 0.3 * y[None, :, None] * z[None, None, :])
    clean = correct_bias(volume, mask)
    corrected = correct_bias(volume.with_array(volume.array * field), mask)

    def unevenness(array: np.ndarray) -> float:
        tissue = mask & (clean > np.percentile(clean[mask], 60))  # white matter, mostly
        return float(np.std(np.log(array[tissue] / clean[tissue])))

    assert unevenness(volume.array * field) > 0.1
    assert unevenness(corrected) < 0.3 * unevenness(volume.array * field)
    assert not corrected[~mask].any()


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.fixture(scope="module")
def head() -> Volume:
    return Volume.load(FILES / "ixi013_t1_4mm.nii.gz")


@pytest.fixture(scope="module")
def parcellation() -> Volume:
    return Volume.load(FILES / "ixi013_mask_4mm.nii.gz")


def test_a_parcellation_gets_its_sulci_back(head, parcellation):
    brain = find_brain(head, parcellation)
    assert brain.source == "given"
    assert (brain.mask >= (parcellation.array > 0)).all()
    assert 1.0 < brain.mask.sum() / (parcellation.array > 0).sum() < 1.25
    assert brain.ml == pytest.approx(brain.mask.sum() * 0.064)
    assert brain.warnings == []


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 2.0, 2.0), (0.8, 1.2, 5.0)])
def test_sulci_are_closed_as_by_a_ball(spacing):
    """Against a closing by a ball of voxels, on a mask that touches the array's faces."""
    rng = np.random.default_rng(3)
    mask = ndimage.gaussian_filter(rng.normal(size=(30, 28, 26)), 2.5) > 0.03
    mask[:4], mask[:, :, -3:] = False, False
    reach = [int(6 // step) for step in spacing]
    grids = np.meshgrid(*(np.arange(-r, r + 1) * step for r, step in zip(reach, spacing, strict=True)))
    ball = (sum(grid**2 for grid in grids) <= 36).transpose(1, 0, 2)
    margin = [(r + 1, r + 1) for r in reach]
    closed = ndimage.binary_closing(np.pad(mask, margin), ball)
    closed = closed[tuple(slice(low, -high) for low, high in margin)]
    np.testing.assert_array_equal(close_sulci(mask, spacing), ndimage.binary_fill_holes(closed | mask))


def test_an_extracted_brain_needs_no_mask():
    scan, given = Volume.load(FILES / "mslub19_t1_4mm.nii.gz"), Volume.load(FILES / "mslub19_mask_4mm.nii.gz")
    brain = find_brain(scan, modality="t2")
    assert brain.source == "extracted"
    assert dice(brain.mask, given.array > 0) > 0.95
    cut_to_its_box = scan.array[ndimage.find_objects(brain.mask.astype(int))[0]]
    boxed = find_brain(Volume.from_array(cut_to_its_box, scan.affine))
    assert boxed.source == "extracted"
    assert boxed.ml == pytest.approx(brain.ml, rel=0.01)


def test_the_brain_is_found_in_a_head(head, parcellation):
    """In any orientation; the background of this scan is zero in part, as that of an extracted brain is."""
    turn = ornt_transform(io_orientation(np.eye(4)), axcodes2ornt("SPL"))
    turned = apply_orientation(head.array, turn)
    affine = head.affine @ inv_ornt_aff(turn, head.array.shape)
    brain = find_brain(Volume.from_array(turned, affine))
    assert brain.source == "deepbet"
    assert dice(brain.mask, find_brain(head, parcellation).mask) > 0.94  # of voxels of 4 mm
    assert brain.warnings == []


def test_a_given_mask_holds_a_brain(head, parcellation):
    everything = Volume.from_array((head.array > 0).astype(np.float32), head.affine)
    with pytest.raises(ValueError, match=r"shows no brain: the brain mask holds \d{4} mL"):
        find_brain(head, everything)
    corner = parcellation.array.copy()
    corner[:, :, : corner.shape[2] // 2 + 6] = 0
    corner[: corner.shape[0] // 2], corner[:, : corner.shape[1] // 2] = 0, 0
    with pytest.raises(ValueError, match=r"shows no brain: the brain mask holds \d{1,3} mL"):
        find_brain(head, Volume.from_array(corner, parcellation.affine))


def test_a_soft_mask_holds_what_is_above_a_half(head, parcellation):
    """Fractions count from one half on, labels from 1 on."""
    binary = (parcellation.array > 0).astype(np.float32)
    soft = ndimage.gaussian_filter(binary, 1)
    assert (soft > 0).sum() > 1.5 * binary.sum()
    found = find_brain(head, head.with_array(soft))
    assert dice(found.mask, find_brain(head, parcellation).mask) > 0.97


def test_a_head_in_much_air_is_found(head, parcellation):
    """Where deepbet's first look would see a head of a few voxels."""
    wide = [(2 * length, 2 * length) for length in head.array.shape]
    affine = head.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ [2 * length for length in head.array.shape]
    brain = find_brain(Volume.from_array(np.pad(head.array, wide), affine))
    x, y, z = (slice(2 * length, 3 * length) for length in head.array.shape)
    assert dice(brain.mask[x, y, z], find_brain(head, parcellation).mask) > 0.9


def test_a_cut_head_is_told(head, parcellation):
    top = int(np.flatnonzero(parcellation.array.any((0, 1)))[-1])
    cut, mask = (Volume.from_array(v.array[:, :, : top - 8], v.affine) for v in (head, parcellation))
    (warning,) = find_brain(cut, mask).warnings
    assert "edge of the scan (top)" in warning


def test_a_small_brain_is_told(parcellation, head):
    small = Volume.from_array(head.array, head.affine @ np.diag([0.8, 0.8, 0.8, 1]))
    brain = find_brain(small, small.with_array(parcellation.array))
    assert any("brain volume" in warning for warning in brain.warnings)
    assert not brain.is_usual
    assert find_brain(head, parcellation).is_usual


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda array: np.round(array / array.max() * 6), "grey levels only"),
        (lambda array: np.where(np.arange(array.shape[2]) // 2 == 15, 0, array), "2 axial slices of the brain"),
        (
            lambda array: np.repeat(array[:, :, ::3], 3, 2)[:, :, : array.shape[2]],
            "axial slices repeat their neighbours",
        ),
    ],
)
def test_damaged_slices_and_few_levels_are_told(head, parcellation, damage, words):
    assert find_brain(head, parcellation).warnings == []
    (warning,) = find_brain(head.with_array(damage(head.array)), parcellation).warnings
    assert words in warning


def noise(head: Volume) -> Volume:
    values = np.random.default_rng(1).normal(100, 5, head.array.shape)
    return head.with_array(values)


def thresholded(head: Volume) -> Volume:
    return head.with_array(head.array > 20)


@pytest.mark.parametrize(
    ("fault", "scan", "mask", "modality"),
    [
        ("mask holds nothing above 0.5", lambda head: head, lambda head: head.with_array(head.array * 0), "t1"),
        ("one value only", lambda head: head.with_array(head.array * 0 + 7), None, "t1"),
        ("constant inside", thresholded, thresholded, "t1"),
        ("lies beside the brain", lambda head: head, lambda head: head.with_array(head.array < 2), "t1"),
        ("brain extraction of t2 needs a mask", lambda head: head, None, "t2"),
        ("shows no brain", noise, None, "t1"),
    ],
)
def test_what_has_no_brain_is_refused(head, fault, scan, mask, modality):
    with pytest.raises(ValueError, match=fault):
        find_brain(scan(head), mask and mask(head), modality=modality)


def test_what_n4_refuses_is_one_clear_line():
    tiny = Volume.from_array(np.ones((3, 3, 3), np.float32), np.eye(4))
    with pytest.raises(ValueError, match=r"^bias correction failed$"):
        correct_bias(tiny, tiny.array > 0)
