from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform

from brainuad.data.nifti import read_nifti
from brainuad.data.volume import Volume
from brainuad.errors import InputError

FILES = Path(__file__).parent.parent / "files"
SCAN = FILES / "ixi013_t1_4mm.nii.gz"
ORIENTATIONS = ["RAS", "LPS", "PSR", "LAS", "SRA", "IPL", "ASL"]


def reoriented(image: nib.Nifti1Image, codes: str) -> nib.Nifti1Image:
    return image.as_reoriented(ornt_transform(nib.io_orientation(image.affine), axcodes2ornt(tuple(codes))))


@pytest.mark.parametrize("codes", ORIENTATIONS)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_any_orientation_reads_the_same_and_round_trips_exactly(tmp_path, codes, suffix):
    original = nib.load(SCAN)
    image = reoriented(original, codes)
    path = tmp_path / f"scan{suffix}"
    nib.save(image, path)

    volume = Volume.load(path)
    reference = Volume.load(SCAN)
    np.testing.assert_array_equal(volume.array, reference.array)
    np.testing.assert_allclose(volume.affine, reference.affine, atol=1e-4)

    volume.save(tmp_path / f"again{suffix}")
    again = nib.load(tmp_path / f"again{suffix}")
    np.testing.assert_array_equal(again.get_fdata(), nib.load(path).get_fdata())
    np.testing.assert_array_equal(again.affine, nib.load(path).affine)
    assert again.shape == image.shape


def test_oblique_anisotropic_scan_keeps_both_affines_and_codes(tmp_path):
    data = nib.load(SCAN).get_fdata().astype(np.float32)[:, ::2]
    angle = np.deg2rad(17)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([4, 8, 4])
    affine[:3, 3] = (-70, 11, 5)
    image = nib.Nifti1Image(data, affine)
    image.header.set_qform(affine, code=1)
    image.header.set_sform(affine, code=4)
    nib.save(image, tmp_path / "oblique.nii.gz")
    volume = Volume.load(tmp_path / "oblique.nii.gz")
    assert volume.spacing == pytest.approx((4, 8, 4), abs=1e-4)
    volume.save(tmp_path / "again.nii.gz")
    stored, again = (nib.load(tmp_path / name).header for name in ("oblique.nii.gz", "again.nii.gz"))
    for field in (
        "qform_code",
        "sform_code",
        "quatern_b",
        "quatern_c",
        "quatern_d",
        "srow_x",
        "srow_y",
        "srow_z",
        "pixdim",
    ):
        np.testing.assert_array_equal(stored[field], again[field], err_msg=field)


def test_only_a_qform(tmp_path):
    image = nib.Nifti1Image(np.zeros((4, 5, 6), np.float32), None)
    image.header.set_qform(np.diag([-2.0, 2.0, 3.0, 1.0]), code=1)
    nib.save(image, tmp_path / "q.nii")
    volume = Volume.load(tmp_path / "q.nii")
    assert np.diag(volume.affine)[:3] == pytest.approx((2, 2, 3))
    volume.save(tmp_path / "again.nii")
    assert nib.load(tmp_path / "again.nii").header["sform_code"] == 0


def test_scale_factors_are_applied_and_not_written_twice(tmp_path):
    image = nib.Nifti1Image(np.arange(24, dtype=np.uint8).reshape(2, 3, 4), np.eye(4))
    image.header.set_slope_inter(0.5, 10)
    nib.save(image, tmp_path / "scaled.nii")
    with_scale = Volume.load(tmp_path / "scaled.nii")
    np.testing.assert_allclose(with_scale.array, nib.load(tmp_path / "scaled.nii").get_fdata())
    with_scale.save(tmp_path / "again.nii")
    np.testing.assert_array_equal(Volume.load(tmp_path / "again.nii").array, with_scale.array)


def test_integers_are_rounded_and_kept_in_range(tmp_path):
    volume = Volume.from_array(np.array([-1.0, 0.6, 254.5, 300.0] * 4).reshape(4, 2, 2), np.eye(4))
    volume.save(tmp_path / "labels.nii.gz", np.uint8)
    assert set(np.unique(nib.load(tmp_path / "labels.nii.gz").dataobj)) == {0, 1, 254, 255}


@given(codes=st.sampled_from(ORIENTATIONS), shape=st.tuples(*[st.integers(2, 7)] * 3), seed=st.integers(0, 2**16))
@settings(max_examples=40, deadline=None)
def test_a_voxel_stays_at_its_place_in_space(codes, shape, seed):
    rng = np.random.default_rng(seed)
    array = rng.random(shape).astype(np.float32)
    to = axcodes2ornt(tuple(codes))
    affine = np.diag([1.5, 2.0, 3.0, 1.0]) @ inv_ornt_aff(to, shape)
    volume = Volume.from_array(array, affine)
    index = np.array([rng.integers(0, size) for size in shape])
    place = affine @ [*index, 1]
    found = np.rint(np.linalg.inv(volume.affine) @ place).astype(int)[:3]
    assert volume.array[tuple(found)] == array[tuple(index)]
    np.testing.assert_array_equal(volume.file_axes(), array)


def test_distance_is_the_farthest_corner(tmp_path):
    array = np.ones((11, 21, 31), np.float32)
    volume = Volume.from_array(array, np.eye(4))
    shifted = np.eye(4)
    shifted[:3, 3] = (3, 0, -4)
    assert volume.distance_to(Volume.from_array(array, shifted)) == pytest.approx(5)
    assert volume.distance_to(Volume.from_array(array, np.diag([1.1, 1, 1, 1]))) == pytest.approx(1)
    flipped = Volume.from_array(array, [[-1, 0, 0, 10], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    assert volume.distance_to(flipped) == 0
    assert (volume.file_orientation, flipped.file_orientation) == ("RAS", "LAS")
    with pytest.raises(ValueError, match="expected shape"):
        volume.distance_to(Volume.from_array(array[1:], np.eye(4)))


@pytest.mark.parametrize("trailing", [(1,), (1, 1)])
def test_trailing_axes_of_length_one_are_dropped_and_written_again(tmp_path, trailing):
    array = np.arange(120, dtype=np.float32).reshape(4, 5, 6, *trailing)
    nib.save(nib.Nifti1Image(array, np.diag([-1.0, 1, 1, 1])), tmp_path / "four.nii.gz")
    volume = Volume.load(tmp_path / "four.nii.gz")
    assert volume.array.shape == (4, 5, 6)
    volume.with_array(volume.array + 1).save(tmp_path / "again.nii.gz")
    np.testing.assert_array_equal(nib.load(tmp_path / "again.nii.gz").get_fdata(), array + 1)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_both_versions_in_both_byte_orders_are_read_as_nibabel_does_and_kept(tmp_path, kind, order):
    original = nib.load(SCAN)
    values = np.asarray(original.dataobj).astype(f"{order}i2")
    header = kind.header_class(endianness=order)
    header.set_data_dtype(values.dtype)
    image = kind(values, original.affine, header)
    image.header.set_slope_inter(0.25, -3)
    nib.save(image, tmp_path / "scan.nii.gz")
    volume = Volume.load(tmp_path / "scan.nii.gz")
    stored = nib.load(tmp_path / "scan.nii.gz")
    assert (type(stored), stored.header.endianness) == (kind, order)
    np.testing.assert_allclose(volume.file_axes(), stored.get_fdata(), rtol=1e-6)
    volume.save(tmp_path / "again.nii.gz")
    again = nib.load(tmp_path / "again.nii.gz")
    assert type(again) is kind
    np.testing.assert_array_equal(again.get_fdata(dtype=np.float32), volume.file_axes())
    np.testing.assert_array_equal(again.affine, stored.affine)


def test_extensions_are_skipped_and_not_carried_on(tmp_path):
    image = nib.load(SCAN)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Jane Doe, born 1970" * 1000))
    nib.save(image, tmp_path / "scan.nii.gz")
    assert len(nib.load(tmp_path / "scan.nii.gz").header.extensions) == 1
    volume = Volume.load(tmp_path / "scan.nii.gz")
    np.testing.assert_array_equal(volume.array, Volume.load(SCAN).array)
    volume.save(tmp_path / "again.nii")
    assert b"Jane" not in (tmp_path / "again.nii").read_bytes()


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    volume = Volume.load(SCAN)
    target = tmp_path / "out.nii.gz"
    volume.save(target)
    before = target.read_bytes()

    def full_disk(image, path):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nib, "save", full_disk)
    with pytest.raises(InputError, match="No space left"):
        volume.with_array(volume.array + 1).save(target)
    assert target.read_bytes() == before
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_a_scan_is_contiguous_and_not_copied_to_be_so(codes, tmp_path):
    array = np.random.default_rng(0).random((5, 6, 7)).astype(np.float32)
    nib.save(reoriented(nib.Nifti1Image(array, np.eye(4)), codes), tmp_path / "scan.nii")
    in_file_axes, _ = read_nifti(tmp_path / "scan.nii")
    np.testing.assert_array_equal(in_file_axes, nib.load(tmp_path / "scan.nii").get_fdata())
    volume = Volume.load(tmp_path / "scan.nii")
    np.testing.assert_array_equal(volume.array, array)
    assert volume.array.flags.c_contiguous
    to_canonical = nib.io_orientation(nib.load(tmp_path / "scan.nii").affine)
    assert nib.apply_orientation(in_file_axes, to_canonical).flags.c_contiguous


def test_a_header_that_says_nowhere_how_it_lies_is_told(tmp_path):
    image = nib.load(FILES / "mslub19_t1_4mm.nii.gz")
    for sform, qform in ((0, 0), (1, 0), (0, 1)):
        header = image.header.copy()
        written = nib.Nifti1Image(np.asarray(image.dataobj), None, header)
        written.header["sform_code"], written.header["qform_code"] = sform, qform
        nib.save(written, tmp_path / "scan.nii")
        volume = Volume.load(tmp_path / "scan.nii")
        if sform or qform:
            volume.check_scan("scan.nii")
        else:
            with pytest.raises(InputError, match=r"scan\.nii: says nowhere how it lies .* set its sform"):
                volume.check_scan("scan.nii")
    Volume.from_array(volume.array, volume.affine).check_scan("array")


def test_a_mask_is_no_scan():
    mask = Volume.load(FILES / "mslub19_mask_4mm.nii.gz")
    with pytest.raises(InputError, match=r"mask\.nii: holds only 2 different values, so it is a mask"):
        mask.check_scan("mask.nii")
    few = Volume.load(FILES / "mslub19_t1_4mm.nii.gz")
    few.with_array(np.round(few.array / few.array.max() * 20)).check_scan("coarse.nii")
