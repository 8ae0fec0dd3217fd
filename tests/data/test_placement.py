from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage
from scipy.spatial.transform import Rotation

from brainuad.data.placement import Placement, alignment, atlas_brain, resample, resample_map
from brainuad.data.registration import on_square_axes, register_to_atlas, register_within_session, to_sitk
from brainuad.data.volume import Volume
from brainuad.errors import ScanFault

FILES = Path(__file__).parent.parent / "files"
FRAME = Placement.around_atlas((40, 48, 36), 4.0)


def moved(volume: Volume, matrix: np.ndarray) -> Volume:
    """The same brain elsewhere: ``matrix`` maps its old place to its new one."""
    return Volume.from_array(volume.array, matrix @ volume.affine)


def back_on(frame: Placement, array: np.ndarray, scan: Volume) -> np.ndarray:
    """A map on the grid, on a scan's voxels."""
    return resample_map(array, np.linalg.inv(frame.affine) @ scan.affine, scan.array.shape)


def test_frame_is_centred_on_the_atlas_brain():
    brain = atlas_brain()
    inside = np.argwhere(brain.array > 0)
    corners = [brain.affine @ [*inside.min(0), 1], brain.affine @ [*inside.max(0), 1]]
    centre = FRAME.affine @ [*((np.array(FRAME.shape) - 1) / 2), 1]
    np.testing.assert_allclose(np.mean(corners, 0), centre, atol=1.5)


def test_there_and_back_gives_the_scan_again():
    frame = Placement.around_atlas((80, 96, 72), 2.0)
    affine = frame.affine.copy()
    affine[:3, 3] += (10, 4, 6)  # cut from the same lattice, as preparation does
    array = np.random.default_rng(0).random((60, 80, 60)).astype(np.float32)
    scan = Volume.from_array(array, affine)
    np.testing.assert_array_equal(back_on(frame, frame.sample(scan), scan), array)


def test_there_and_back_between_lattices_is_close():
    scan, frame = atlas_brain(), Placement.around_atlas((80, 96, 72), 2.0)
    back = back_on(frame, frame.sample(scan), scan)
    inside = scan.array > 0
    assert np.corrcoef(back[inside], scan.array[inside])[0, 1] > 0.97


def test_a_shifted_lattice_copies_exactly():
    array = np.random.default_rng(0).random((9, 8, 7)).astype(np.float32)
    matrix = np.eye(4)
    matrix[:3, 3] = (2, -1, 3)
    result = resample(array, matrix, (9, 8, 7), order=3)
    np.testing.assert_array_equal(result[:7, 1:, :4], array[2:, :7, 3:])
    assert not result[7:].any()


def test_a_map_reaches_the_far_edge_of_its_outermost_voxels():
    array = np.random.default_rng(0).random((6, 5, 4)).astype(np.float32) + 1
    matrix = np.diag([0.5, 0.5, 0.5, 1.0])  # every voxel is cut in two along each axis, with one more around
    matrix[:3, 3] = -0.75
    fine = resample_map(array, matrix, (14, 12, 10))
    assert (fine[1:-1, 1:-1, 1:-1] > 0).all()
    assert not any(fine.take((0, -1), axis).any() for axis in range(3))
    np.testing.assert_allclose(fine[1, 1, 1], array[0, 0, 0])
    np.testing.assert_allclose(fine[2:-2, 2:-2, 2:-2], resample(array, matrix, (14, 12, 10), order=1)[2:-2, 2:-2, 2:-2])
    turned = matrix.copy()
    turned[:3, :3] = 0.5 * Rotation.from_euler("z", 1, degrees=True).as_matrix()
    np.testing.assert_allclose(resample_map(array, turned, (14, 12, 10)), fine, atol=0.5, rtol=0)


def test_a_map_that_ends_in_zeros_is_resampled_as_any_other():
    array = np.pad(np.random.default_rng(0).random((6, 5, 4)).astype(np.float32), 1)
    matrix = np.diag([0.7, 0.5, 1.3, 1.0])
    np.testing.assert_array_equal(resample_map(array, matrix, (9, 9, 9)), resample(array, matrix, (9, 9, 9), order=1))


def test_resampling_agrees_with_simpleitk():
    scan = Volume.load(FILES / "ixi013_t1_4mm.nii.gz")
    angle = np.deg2rad(12)
    shift = np.array([-119, 110, 72.5])
    transform = np.eye(4)
    transform[:3, :3] = [[np.cos(angle), 0, -np.sin(angle)], [0, 1.02, 0], [np.sin(angle), 0, np.cos(angle)]]
    transform[:3, 3] = -transform[:3, :3] @ shift
    ours = replace(FRAME, atlas_to_scan=transform).sample(scan, order=1)
    flip = np.diag([-1.0, -1, 1, 1])
    lps = flip @ transform @ flip
    affine = sitk.AffineTransform(lps[:3, :3].ravel().tolist(), lps[:3, 3].tolist())
    reference = to_sitk(Volume.from_array(np.zeros(FRAME.shape, np.float32), FRAME.affine))
    theirs = sitk.GetArrayFromImage(sitk.Resample(to_sitk(scan), reference, affine, sitk.sitkLinear, 0.0))
    inside = ours > 0
    assert inside.sum() > 5000
    difference = np.abs(ours - theirs.transpose(2, 1, 0))
    # the outermost half voxel differs by convention
    assert np.quantile(difference, 0.98) < 1e-2


def test_registration_undoes_a_known_move():
    atlas = atlas_brain()
    angle = np.deg2rad(10)
    move = np.eye(4)
    move[:3, :3] = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    ) @ np.diag([1.05, 0.95, 1.02])
    move[:3, 3] = (25, -140, -30)
    found = register_to_atlas(moved(atlas, move))
    points = np.array([[-119, 110, 72, 1], [-80, 110, 72, 1], [-119, 170, 72, 1], [-119, 110, 110, 1]], float)
    error = np.linalg.norm((points @ found.T - points @ move.T)[:, :3], axis=1)
    assert error.max() < 1.5, error  # mm


def sheared(degrees: float) -> np.ndarray:
    """A map whose axes stand by some degrees off square to each other."""
    matrix = np.eye(4)
    matrix[0, 1], matrix[2, 0] = np.tan(np.deg2rad([degrees, -degrees]))
    return matrix


@pytest.mark.parametrize("degrees", [1, 5])
def test_axes_off_square_are_registered_as_they_lie(degrees):
    """As a registration by 12 parameters leaves them in a header: SimpleITK knows no such axes."""
    atlas, shear = atlas_brain(), sheared(degrees)
    found = register_to_atlas(moved(atlas, shear))
    inside = np.argwhere(atlas.array > 0)[::500]
    points = np.c_[inside, np.ones(len(inside))] @ atlas.affine.T
    error = np.linalg.norm((points @ (found - shear).T)[:, :3], axis=1)
    assert error.max() < 1.5, error.max()  # mm
    placement = Placement.around_atlas((80, 96, 72), 2.0, found)
    assert alignment(placement.sample(moved(atlas, shear)), placement) > 0.98


def test_square_axes_hold_all_of_a_scan():
    scan = moved(Volume.load(FILES / "mslub19_t1_4mm.nii.gz"), sheared(5))
    with pytest.raises(ValueError, match="not square to each other"):
        to_sitk(scan)
    square = on_square_axes(scan)
    to_sitk(square)
    np.testing.assert_allclose(square.spacing, scan.spacing)
    total = [float(volume.array.sum() * volume.voxel_ml) for volume in (scan, square)]
    assert total[1] == pytest.approx(total[0], rel=0.01)
    assert on_square_axes(square) is square


def test_a_real_head_registers():
    scan = Volume.load(FILES / "ixi013_t1_4mm.nii.gz")
    mask = Volume.load(FILES / "ixi013_mask_4mm.nii.gz").array > 0
    brain = scan.with_array(scan.array * mask)
    on_grid = replace(FRAME, atlas_to_scan=register_to_atlas(brain)).sample(brain)
    assert alignment(on_grid, FRAME) > 0.6
    unregistered = FRAME.sample(
        moved(brain, np.array([[1, 0, 0, -119], [0, 1, 0, 110], [0, 0, 1, 72.5], [0, 0, 0, 1.0]]))
    )
    assert alignment(on_grid, FRAME) > alignment(unregistered, FRAME)


def test_zeros_around_a_brain_change_nothing():
    """They are left out; here SciPy filters and samples all of the scan."""
    scan = np.pad(Volume.load(FILES / "mslub19_t1_4mm.nii.gz").array, 40)
    matrix = np.eye(4)
    matrix[:3, :3] = 1.7 * Rotation.from_euler("z", 8, degrees=True).as_matrix()
    matrix[:3, 3] = (28, 45, 33)
    sigma = np.sqrt(1.7**2 - 1) / 2.355
    smooth = ndimage.gaussian_filter(scan, sigma, mode="constant")
    expected = ndimage.affine_transform(smooth, matrix[:3, :3], matrix[:3, 3], (30, 30, 30))
    ours = resample(scan, matrix, (30, 30, 30), order=3)
    assert ours.max() > 10
    np.testing.assert_allclose(ours, expected, atol=1e-6 * ours.max())


def test_registration_is_repeatable():
    scan = Volume.load(FILES / "mslub19_t1_4mm.nii.gz")
    np.testing.assert_array_equal(register_to_atlas(scan, seed=3), register_to_atlas(scan, seed=3))


@pytest.mark.parametrize("order", [0, 1, 3])
def test_no_new_values_far_outside(order):
    far = np.eye(4)
    far[:3, 3] = 1000
    assert not replace(FRAME, atlas_to_scan=far).sample(atlas_brain(), order=order).any()


@pytest.mark.parametrize(("degrees", "off_square"), [(0, 0), (4, 0), (4, 5)])
def test_a_head_that_moved_between_two_contrasts_is_found(degrees, off_square):
    first = Volume.load(FILES / "mslub19_t1_4mm.nii.gz")
    brain = Volume.load(FILES / "mslub19_mask_4mm.nii.gz").array > 0
    inverted = np.where(brain, 300 - first.array, 0)
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xyz", [degrees, -degrees, degrees], degrees=True).as_matrix()
    turn[:3, 3] = [degrees, 0, -degrees]
    grid = sheared(off_square) @ first.affine @ np.diag([0.9, 1, 1.25, 1])
    matrix = np.linalg.inv(turn @ first.affine) @ grid
    second = Volume.from_array(resample(inverted, matrix, (44, 48, 24), order=1), grid)
    found = register_within_session(first, brain, second)
    there = first.affine @ np.c_[np.argwhere(brain), np.ones(brain.sum())].T
    error = np.linalg.norm(((found - turn) @ there)[:3], axis=0)
    if degrees:
        assert error.max() < 1  # mm
    else:
        np.testing.assert_array_equal(found, np.eye(4))


def test_scans_that_share_no_space_are_no_session():
    first = Volume.load(FILES / "mslub19_t1_4mm.nii.gz")
    far = np.eye(4)
    far[:3, 3] = 1000
    with pytest.raises(ValueError, match="could not be registered within its session") as raised:
        register_within_session(first, first.array > 20, moved(first, far))
    assert "\n" not in str(raised.value)


def test_a_brain_of_other_units_is_told_in_plain_words():
    """ITK says that all samples map outside the moving image buffer."""
    brain = Volume.load(FILES / "mslub19_t1_4mm.nii.gz")
    tiny = Volume.from_array(brain.array, brain.affine @ np.diag([0.01, 0.01, 0.01, 1]))
    with pytest.raises(ScanFault, match=r"^could not be registered .*: its voxel size or field") as raised:
        register_to_atlas(tiny)
    assert raised.value.remedy == "Look at the scan and its brain mask"
    assert str(copy(raised.value)) == str(raised.value)  # as processes hand errors over
