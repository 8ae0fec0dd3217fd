import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import torchio as tio
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from brainuad.config import DataConfig
from brainuad.data.cohort import Case
from brainuad.data.loading import _centre, crop_or_pad, load_case, load_cohort, place_volumes, reduce
from brainuad.data.volume import Volume
from brainuad.errors import InputError

FILES = Path(__file__).parent.parent / "files"
DEMO = Path(__file__).parents[2] / "src/brainuad/assets/demo"
CASE = Case(
    "patient19", "MSLUB", "test", FILES / "mslub19_t1_4mm.nii.gz", FILES / "mslub19_mask_4mm.nii.gz",
    FILES / "mslub19_seg_4mm.nii.gz", 1, None,
)  # fmt: skip
SMALL = DataConfig(imageDim=(36, 52, 32), rescaleFactor=2.0)
DEMO_CASE = Case("IXI067", "IXI", "test", DEMO / "IXI067_t1.nii.gz", DEMO / "IXI067_mask.nii.gz", None, 0, None)
ATLAS_GRID = DataConfig(imageDim=(160, 192, 144), rescaleFactor=2.0, affine="used", smoothing_iterations=0)


def place(case, config):
    """Image, mask, lesion and affine of a case on the model's grid."""
    loaded = load_case(case, config)
    return loaded.image, loaded.mask, loaded.lesion, loaded.affine


@given(have=st.tuples(*[st.integers(2, 15)] * 3), want=st.tuples(*[st.integers(2, 15)] * 3))
@settings(max_examples=30, deadline=None)
def test_crop_or_pad_equals_torchio(have, want):
    array = np.random.default_rng(0).random(have).astype(np.float32)
    theirs = tio.CropOrPad(want)(tio.ScalarImage(tensor=torch.tensor(array)[None])).numpy()[0]
    np.testing.assert_array_equal(crop_or_pad(array, want), theirs)


@pytest.mark.parametrize("affine", ["used", "ignored"])
def test_a_scan_from_minus_one_to_one_is_the_same_scan(affine):
    config = replace(ATLAS_GRID, affine=affine)
    image, mask = Volume.load(DEMO_CASE.image), Volume.load(DEMO_CASE.mask)
    shifted = image.with_array(2 * image.array / image.array.max() - 1)
    expected, found = (place_volumes(one, mask, None, config)[0] for one in (image, shifted))
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_a_brain_is_no_lesion():
    with pytest.raises(InputError, match=r"mask_4mm\.nii\.gz: marks \d+ mL, most of a brain"):
        place(replace(CASE, lesion=CASE.mask), SMALL)


@pytest.mark.parametrize("shape", [(20, 24, 16), (18, 30, 22)])
def test_reduce_equals_torchio(shape):
    array = np.random.default_rng(0).random(shape).astype(np.float32)
    image = tio.ScalarImage(tensor=torch.tensor(array)[None])
    smooth = tio.Resample(2, image_interpolation="bspline")(image).numpy()[0]
    nearest = tio.Resample(2)(tio.LabelMap(tensor=torch.tensor(array > 0.5)[None].int())).numpy()[0]
    np.testing.assert_allclose(reduce(array, 2.0, order=3), smooth, atol=1e-5)
    np.testing.assert_array_equal(reduce(array > 0.5, 2.0, order=0), nearest)


def test_the_whole_published_loader_against_torchio_and_itk():
    import SimpleITK as sitk

    image = nib.load(CASE.image).get_fdata(dtype=np.float32)
    itk = sitk.GetImageFromArray(np.ascontiguousarray(image.transpose(2, 1, 0)))
    smooth = sitk.GetArrayFromImage(sitk.CurvatureFlow(itk, timeStep=0.125, numberOfIterations=3)).transpose(2, 1, 0)
    subject = tio.Subject(
        image=tio.ScalarImage(tensor=torch.tensor(smooth.copy())[None]),
        mask=tio.LabelMap(tensor=torch.tensor(nib.load(CASE.mask).get_fdata())[None].int()),
        lesion=tio.LabelMap(tensor=torch.tensor(nib.load(CASE.lesion).get_fdata() > 0.5)[None].int()),
    )
    steps = [
        tio.CropOrPad(SMALL.imageDim),
        tio.RescaleIntensity((0, 1), percentiles=(1, 99), masking_method="mask"),
        tio.Resample(SMALL.rescaleFactor, image_interpolation="bspline"),
    ]
    theirs = tio.Compose(steps)(subject)
    ours, mask, lesion, _ = place(CASE, SMALL)
    np.testing.assert_allclose(ours, theirs["image"].numpy()[0], atol=2e-3)
    np.testing.assert_array_equal(mask, theirs["mask"].numpy()[0] > 0)
    np.testing.assert_array_equal(lesion, theirs["lesion"].numpy()[0] > 0)


def test_the_grid_affine_leads_back_to_the_file():
    _, mask, _, affine = place(CASE, SMALL)
    stored = nib.load(CASE.mask)
    index = np.argwhere(mask)
    in_file = np.linalg.inv(stored.affine) @ affine @ np.c_[index, np.ones(len(index))].T
    nearest = np.floor(in_file[:3] + 0.5).astype(int)
    assert (np.asarray(stored.dataobj)[tuple(nearest)] > 0).all()


@given(have=st.tuples(*[st.integers(4, 15)] * 3), want=st.tuples(*[st.sampled_from([4, 6, 10])] * 3))
@settings(max_examples=30, deadline=None)
def test_the_grid_lies_where_torchio_puts_it(have, want):
    array = np.random.default_rng(0).random(have).astype(np.float32)
    theirs = tio.ScalarImage(tensor=torch.tensor(array)[None])
    for step in (tio.CropOrPad(want), tio.Resample(2)):
        theirs = step(theirs)
    volume = Volume.from_array(array, np.eye(4))
    config = DataConfig(imageDim=want, rescaleFactor=2.0, smoothing_iterations=0)
    *_, affine = place_volumes(volume, volume.with_array(np.ones(have, dtype=np.float32)), None, config)
    np.testing.assert_allclose(affine, theirs.affine, atol=1e-9)


def test_scans_in_atlas_space_are_placed_by_their_affine(tmp_path):
    image, mask, lesion, affine = place(DEMO_CASE, ATLAS_GRID)
    assert image.shape == (80, 96, 72)
    assert lesion is None
    assert image.dtype == np.float32
    assert image.min() == 0
    assert image.max() == 1
    # the same scan with its empty margin cut otherwise lands on the same voxels
    for name in ("t1", "mask"):
        volume = Volume.load(DEMO / f"IXI067_{name}.nii.gz")
        wider = Volume.from_array(
            np.pad(volume.array, ((3, 0), (0, 5), (1, 2))),
            volume.affine @ np.array([[1, 0, 0, -3], [0, 1, 0, 0], [0, 0, 1, -1], [0, 0, 0, 1]]),
        )
        wider.save(tmp_path / f"{name}.nii.gz")
    moved = replace(DEMO_CASE, image=tmp_path / "t1.nii.gz", mask=tmp_path / "mask.nii.gz")
    again = place(moved, ATLAS_GRID)
    np.testing.assert_allclose(again[0], image, atol=1e-6)
    np.testing.assert_array_equal(again[1], mask)
    np.testing.assert_array_equal(again[3], affine)


def test_a_scan_that_is_not_in_atlas_space_is_refused_with_the_remedy():
    with pytest.raises(InputError, match=r"mm from the atlas brain.*brainuad prepare"):
        place(CASE, ATLAS_GRID)


def test_a_second_load_comes_from_the_cache(tmp_path, monkeypatch):
    config = replace(SMALL, cache_dir=str(tmp_path))
    first = load_case(CASE, config)
    monkeypatch.setattr("brainuad.data.loading.place_volumes", None)
    second = load_case(CASE, config)
    for name in ("image", "mask", "lesion", "affine"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_the_cache_knows_content_and_settings_not_names(tmp_path):
    config = replace(SMALL, cache_dir=str(tmp_path / "cache"))
    copy = tmp_path / "elsewhere.nii.gz"
    shutil.copyfile(CASE.image, copy)
    load_case(CASE, config)
    load_case(replace(CASE, image=copy), config)
    assert len(list((tmp_path / "cache").iterdir())) == 1
    load_case(CASE, replace(config, smoothing_iterations=0))
    assert len(list((tmp_path / "cache").iterdir())) == 2
    volume = Volume.load(copy)
    volume.with_array(volume.array * 2).save(copy)
    load_case(replace(CASE, image=copy), config)
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_a_damaged_cache_entry_is_made_again(tmp_path):
    config = replace(SMALL, cache_dir=str(tmp_path))
    first = load_case(CASE, config)
    (entry,) = tmp_path.iterdir()
    entry.write_bytes(entry.read_bytes()[:100])
    np.testing.assert_array_equal(load_case(CASE, config).image, first.image)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, caplog, num_workers):
    (tmp_path / "file").write_text("")
    config = replace(SMALL, cache_dir=str(tmp_path / "file/cache"), num_workers=num_workers)
    loaded = load_cohort([CASE] * 3, config)
    expected = place(CASE, SMALL)
    for prepared in loaded:
        np.testing.assert_array_equal(prepared.image, expected[0])
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "cannot be written" in record.getMessage()


def shifted(path, folder, millimetres):
    """A copy of a file with its affine moved along z."""
    stored = nib.load(path)
    affine = stored.affine.copy()
    affine[2, 3] += millimetres
    nib.save(nib.Nifti1Image(np.asarray(stored.dataobj), affine), folder / path.name)
    return folder / path.name


def test_masks_must_lie_on_the_image_where_affines_count(tmp_path):
    near = replace(DEMO_CASE, mask=shifted(DEMO_CASE.mask, tmp_path, 0.5))
    place(near, ATLAS_GRID)
    far = replace(DEMO_CASE, mask=shifted(DEMO_CASE.mask, tmp_path, 8))
    with pytest.raises(InputError, match=r"IXI067_mask\.nii\.gz: lies up to 8\.0 mm from its image"):
        place(far, ATLAS_GRID)
    with pytest.raises(InputError, match=r"lies up to 8\.0 mm"):
        place(replace(DEMO_CASE, lesion=far.mask), ATLAS_GRID)


def test_where_affines_are_ignored_masks_need_the_axes_of_the_image(tmp_path):
    moved = replace(CASE, mask=shifted(CASE.mask, tmp_path, 8))
    np.testing.assert_array_equal(place(moved, SMALL)[1], place(CASE, SMALL)[1])
    stored = nib.load(CASE.mask)
    turn = nib.orientations.ornt_transform(nib.io_orientation(stored.affine), nib.orientations.axcodes2ornt("PSR"))
    nib.save(stored.as_reoriented(turn), tmp_path / "turned.nii.gz")
    with pytest.raises(InputError, match=r"turned\.nii\.gz: is stored in the axes PSR, its image in "):
        place(replace(CASE, mask=tmp_path / "turned.nii.gz"), SMALL)


def test_turned_masks_do_no_harm_where_affines_count(tmp_path):
    stored = nib.load(DEMO_CASE.mask)
    turn = nib.orientations.ornt_transform(nib.io_orientation(stored.affine), nib.orientations.axcodes2ornt("PSR"))
    nib.save(stored.as_reoriented(turn), tmp_path / "turned.nii.gz")
    turned = replace(DEMO_CASE, mask=tmp_path / "turned.nii.gz")
    for ours, theirs in zip(place(turned, ATLAS_GRID)[:2], place(DEMO_CASE, ATLAS_GRID)[:2], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_cohort_keeps_its_order(tmp_path):
    config = replace(SMALL, cache_dir=str(tmp_path), num_workers=2)
    cases = [replace(CASE, subject=str(number)) for number in range(4)]
    seen = []
    assert [p.case.subject for p in load_cohort(cases, config, report=lambda c: seen.append(c.subject))] == list("0123")
    assert seen == list("0123")


def test_faults_name_the_file(tmp_path):
    config = replace(SMALL, cache_dir=str(tmp_path / "cache"))
    image, mask = Volume.load(CASE.image), Volume.load(CASE.mask)
    empty, small, constant = (tmp_path / f"{name}.nii.gz" for name in ("empty", "small", "constant"))
    mask.with_array(mask.array * 0).save(empty)
    Volume.from_array(mask.array[:-1], mask.affine).save(small)
    image.with_array(image.array * 0 + 5).save(constant)
    with pytest.raises(InputError, match=r"empty\.nii\.gz: the brain mask holds nothing above 0.5"):
        load_case(replace(CASE, mask=empty), config)
    with pytest.raises(InputError, match=r"small\.nii\.gz: has shape"):
        load_case(replace(CASE, mask=small), config)
    with pytest.raises(InputError, match=r"constant\.nii\.gz.*constant"):
        load_case(replace(CASE, image=constant), config)
    with pytest.raises(InputError, match=r"gone\.nii\.gz: no such file"):
        load_case(replace(CASE, image=tmp_path / "gone.nii.gz"), config)


@given(mask=hnp.arrays(bool, st.tuples(*[st.integers(1, 6)] * 3)).filter(np.any))
@settings(max_examples=40, deadline=None)
def test_centre_is_the_centre_of_mass(mask):
    assert _centre(mask) == pytest.approx(ndimage.center_of_mass(mask))
