import json
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from hdbet_stand_in import stand_in
from nibabel.processing import resample_from_to
from scipy.spatial.transform import Rotation

from brainuad.config import DataConfig
from brainuad.data.bias import bias_levels_of
from brainuad.data.check import check_data_dir
from brainuad.data.cohort import manifest_cases, read_cases
from brainuad.data.loading import load_case
from brainuad.data.volume import Volume
from brainuad.prepare.cohort import prepare_cohort
from brainuad.prepare.raw import RawScan, raw_scans
from brainuad.prepare.scan import Preparation, _known_before, prepare_scan

FILES = Path(__file__).parents[1] / "files"
HEALTHY = RawScan(
    "IXI013-HH-1212",
    "ixi",
    {"t1": FILES / "ixi013_t1_4mm.nii.gz"},
    FILES / "ixi013_labels_4mm.nii.gz",
    splits=("train",),
    age=46.7,
)
PATIENT = RawScan(
    "patient19",
    "MSLUB",
    {"t1": FILES / "mslub19_t1_4mm.nii.gz"},
    None,
    FILES / "mslub19_seg_4mm.nii.gz",
    splits=("test",),
)
COARSE = Preparation(spacing=4.0)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("prepared")
    broken = RawScan("IXI999-HH-0000", "ixi", {"t1": FILES / "README.md"}, None, splits=("train",))
    table = prepare_cohort([HEALTHY, PATIENT, broken], root, COARSE, jobs=2)
    assert dict(zip(table["subject"], table["status"], strict=True)) == {
        "IXI013-HH-1212": "prepared", "patient19": "prepared", "IXI999-HH-0000": "failed",
    }  # fmt: skip
    assert "README.md" in table.set_index("subject").loc["IXI999-HH-0000", "message"]
    return root


def test_writes_the_papers_layout(prepared):
    data = prepared / "Data"
    for name in (
        "Train/ixi/t1/IXI013-HH-1212_t1", "Train/ixi/mask/IXI013-HH-1212_mask", "Test/MSLUB/t1/patient19_t1",
        "Test/MSLUB/mask/patient19_mask", "Test/MSLUB/seg/patient19_seg",
    ):  # fmt: skip
        assert (data / f"{name}.nii.gz").is_file()
    cases = {case.subject: case for case in read_cases(prepared, modality="t1", training=False)}
    assert cases["IXI013"].split == "train"
    assert cases["IXI013"].age == pytest.approx(46.7)
    assert cases["patient19"].lesion is not None
    assert len(cases) == 2  # the failed scan is in no split
    assert set(pd.read_csv(prepared / "prepare.csv")["subject"]) == {"IXI013-HH-1212", "IXI999-HH-0000", "patient19"}


def test_images_are_cut_to_the_brain_and_lie_in_the_atlas(prepared):
    image = Volume.load(prepared / "Data/Train/ixi/t1/IXI013-HH-1212_t1.nii.gz")
    mask = Volume.load(prepared / "Data/Train/ixi/mask/IXI013-HH-1212_mask.nii.gz")
    assert image.array.shape == mask.array.shape
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        profile = mask.array.any(others)
        assert profile[0]
        assert profile[-1]
    assert not image.array[mask.array == 0].any()
    assert image.array.min() >= 0
    config = DataConfig(imageDim=(160, 192, 144), rescaleFactor=4.0, affine="used", smoothing_iterations=0)
    case = next(case for case in read_cases(prepared, modality="t1", training=False) if case.subject == "IXI013")
    loaded = load_case(case, DataConfig(**{**vars(config), "cache_dir": str(prepared / "cache")}))
    assert (
        loaded.mask.sum() >= 0.995 * mask.array.sum()
    )  # the model's grid ends in the brain stem, and loses nothing else


def test_the_labels_of_a_parcellation_go_with_the_mask(prepared):
    labels, mask = (
        nib.load(prepared / f"Data/Train/ixi/{kind}/IXI013-HH-1212_{kind}.nii.gz") for kind in ("labels", "mask")
    )
    assert labels.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(labels.affine, mask.affine)
    values = np.asarray(labels.dataobj)
    assert len(np.unique(values)) > 100
    assert not values[np.asarray(mask.dataobj) == 0].any()
    sidecar = json.loads((prepared / "Data/prepared/ixi/IXI013-HH-1212.json").read_text())
    raw = nib.load(HEALTHY.mask)
    in_atlas = nib.Nifti1Image(np.asarray(raw.dataobj), np.linalg.inv(sidecar["atlas_to_scan"]) @ raw.affine)
    expected = np.asarray(resample_from_to(in_atlas, (labels.shape, labels.affine), order=0).dataobj)
    np.testing.assert_array_equal(values, expected)
    assert not (prepared / "Data/Test/MSLUB/labels").exists()  # no mask was given


def test_bias_correction_makes_white_matter_even(prepared):
    image = Volume.load(prepared / "Data/Train/ixi/t1/IXI013-HH-1212_t1.nii.gz").array
    inside = image[image > np.percentile(image[image > 0], 60)]
    assert inside.std() / inside.mean() < 0.2
    assert bias_levels_of(prepared / "Data/Train/ixi/t1/IXI013-HH-1212_t1.nii.gz") == 4


def test_a_rerun_skips_what_is_done_and_repairs_what_is_missing(prepared):
    sidecar = prepared / "Data/prepared/MSLUB/patient19.json"
    before = sidecar.stat().st_mtime_ns
    assert prepare_scan(PATIENT, prepared / "Data", COARSE)["status"] == "skipped"
    assert sidecar.stat().st_mtime_ns == before
    assert np.shape(json.loads(sidecar.read_text())["atlas_to_scan"]) == (4, 4)
    written = sidecar.read_text()
    recipe = json.loads(written)["recipe"]
    assert _known_before(sidecar, recipe, prepared / "Data", PATIENT) is not None
    parts = ({"measured": {}}, {"measured": {"alignment": "x"}}, {"notes": 5}, {"left_out": None}, {"outputs": 3})
    partly = [json.dumps(json.loads(written) | part) for part in parts]
    for damaged in (written[:100], '{"outputs": []}', "[]", "[" * 100_000, *partly):
        sidecar.write_text(damaged)
        assert _known_before(sidecar, recipe, prepared / "Data", PATIENT) is None, damaged[:100]
    sidecar.write_text(written)
    (prepared / "Data/Test/MSLUB/seg/patient19_seg.nii.gz").unlink()
    assert prepare_scan(PATIENT, prepared / "Data", COARSE)["status"] == "prepared"
    assert (prepared / "Data/Test/MSLUB/seg/patient19_seg.nii.gz").is_file()


def test_a_manifest_lists_what_was_prepared_whatever_its_data_set(prepared):
    cases = {case.subject: case for case in manifest_cases(prepared / "manifest.csv")}
    assert set(cases) == {"IXI013-HH-1212", "patient19"}
    healthy, patient = cases["IXI013-HH-1212"], cases["patient19"]
    assert (healthy.dataset, healthy.split, healthy.label, healthy.age) == ("IXI", "train", 0, 46.7)
    assert (patient.dataset, patient.split, patient.label) == ("MSLUB", "test", 1)
    assert all(path and path.is_file() for path in (healthy.image, healthy.mask, patient.image, patient.lesion))
    assert not (prepared / "manifest_t2.csv").exists()
    problems = check_data_dir(prepared / "manifest.csv", "t1", None)
    assert [str(problem) for problem in problems if problem.severity == "error"] == []


def test_a_later_run_changes_only_the_rows_of_its_own_scans(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    other = replace(PATIENT, subject="007", dataset="OURS", images={"t1": FILES / "README.md"})
    for scan in (replace(HEALTHY, splits=("val",)), other):
        prepare_cohort([scan], tmp_path, COARSE)
    assert {case.subject: case.split for case in manifest_cases(tmp_path / "manifest.csv")} == {
        "IXI013-HH-1212": "val", "patient19": "test",
    }  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "Data/splits").iterdir()) == ["IXI_val_fold0.csv", "MSLUB_test.csv"]
    table = pd.read_csv(tmp_path / "prepare.csv", dtype=str).set_index("subject")
    assert table["status"].to_dict() == {
        "007": "failed", "IXI013-HH-1212": "skipped", "IXI999-HH-0000": "failed", "patient19": "prepared",
    }  # fmt: skip
    assert table["alignment"].notna().to_dict() == {
        "007": False, "IXI013-HH-1212": True, "IXI999-HH-0000": False, "patient19": True,
    }  # fmt: skip


def test_an_interrupted_run_lists_what_it_did(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    for path in (tmp_path / "prepare.csv", tmp_path / "manifest.csv"):
        path.unlink()

    def interrupt(row: dict[str, object]) -> None:
        raise KeyboardInterrupt

    scans = [HEALTHY, replace(HEALTHY, images={"t1": tmp_path / "none"}, subject="later")]
    with pytest.raises(KeyboardInterrupt):
        prepare_cohort(scans, tmp_path, COARSE, report=interrupt)
    assert list(pd.read_csv(tmp_path / "prepare.csv")["subject"]) == ["IXI013-HH-1212"]
    assert [case.subject for case in manifest_cases(tmp_path / "manifest.csv")] == ["IXI013-HH-1212"]


def test_a_scan_without_a_split_says_so(prepared):
    row = prepare_scan(replace(HEALTHY, splits=("",)), prepared / "Data", COARSE)
    assert row["message"] == "has no split, so no split CSV or manifest lists it"


def second_scan(path: Path, *, degrees: float) -> None:
    """Write a flatter contrast of the healthy head, turned, on slices of 5 mm."""
    head = nib.load(HEALTHY.images["t1"])
    contrast = np.sqrt(np.asarray(head.dataobj).astype(float))
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xyz", [degrees, -degrees, degrees], degrees=True).as_matrix()
    grid = np.diag([4.0, 4.0, 5.0, 1.0])
    grid[:3, 3] = [-90, -130, -70]
    moved = nib.Nifti1Image(contrast.astype(np.float32), turn @ head.affine)
    nib.save(resample_from_to(moved, ((46, 60, 38), grid), order=1), path)


@pytest.mark.long
@pytest.mark.slow
def test_a_t2_follows_the_head_that_moved_and_is_cut_to_the_brain_of_the_t1(prepared, tmp_path):
    second_scan(tmp_path / "t2.nii.gz", degrees=5)
    scan = replace(HEALTHY, images={**HEALTHY.images, "t2": tmp_path / "t2.nii.gz"}, modality="t2")
    row = prepare_scan(scan, tmp_path / "Data", COARSE)
    assert (row["status"], row["brain"], row["left_out"]) == ("prepared", "given", {})
    t1, t2, mask = (
        Volume.load(tmp_path / f"Data/Train/ixi/{name}/IXI013-HH-1212_{name}.nii.gz").array
        for name in ("t1", "t2", "mask")
    )
    assert not t2[mask == 0].any()
    assert np.corrcoef(t1[mask > 0], t2[mask > 0])[0, 1] > 0.75
    before = Volume.load(prepared / "Data/Train/ixi/t1/IXI013-HH-1212_t1.nii.gz").array
    np.testing.assert_array_equal(t1, before)  # a T2 changes nothing of the T1
    sidecar = json.loads((tmp_path / "Data/prepared/ixi/IXI013-HH-1212.json").read_text())
    moved = np.array(sidecar["atlas_to_other"]["t2"]) @ np.linalg.inv(sidecar["atlas_to_scan"])
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_euler("xyz", [5, -5, 5], degrees=True).as_matrix()
    head = nib.load(HEALTHY.mask)
    brain = np.c_[np.argwhere(np.asarray(head.dataobj) > 0), np.ones(np.count_nonzero(head.dataobj))]
    there = head.affine @ brain.T
    assert np.linalg.norm(((moved - turned) @ there)[:3], axis=0).max() < 1.5  # mm, of voxels of 4 and 5 mm


def test_an_image_that_nobody_asked_for_does_not_fail_the_subject(tmp_path):
    damaged = tmp_path / "t2.nii.gz"
    damaged.write_bytes(PATIENT.images["t1"].read_bytes()[:9000])
    stale = tmp_path / "Data/Test/MSLUB/t2/patient19_t2.nii.gz"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"of an earlier run")
    scan = replace(PATIENT, images={"t2": damaged, **PATIENT.images})
    table = prepare_cohort([scan], tmp_path, COARSE)
    assert table.loc[0, "status"] == "prepared"
    assert "t2 is left out" in table.loc[0, "message"]
    assert "truncated or damaged" in table.loc[0, "message"]
    assert not stale.exists()
    assert (tmp_path / "manifest.csv").exists()
    assert not (tmp_path / "manifest_t2.csv").exists()
    again = prepare_scan(scan, tmp_path / "Data", COARSE)
    assert again["status"] == "skipped"
    assert again["message"] == table.loc[0, "message"]
    failed = prepare_scan(replace(scan, modality="t2"), tmp_path / "Data", COARSE)
    assert failed["status"] == "failed"
    assert failed["message"].startswith(f"{damaged}: is truncated or damaged")


def test_a_t2_alone_needs_a_mask_or_hd_bet(tmp_path):
    second_scan(tmp_path / "t2.nii.gz", degrees=0)
    scan = RawScan("A", "ixi", {"t2": tmp_path / "t2.nii.gz"}, modality="t2")
    row = prepare_scan(scan, tmp_path / "Data", COARSE)
    assert row["status"] == "failed"
    assert "is not brain-extracted" in row["message"]
    assert "Give a mask that is above 0.5 in the brain, or the T1 scan of the session" in row["message"]


@pytest.mark.slow
def test_hd_bet_finds_the_brain_of_a_t2_whose_t1_is_damaged(tmp_path, monkeypatch):
    second_scan(tmp_path / "t2.nii.gz", degrees=0)
    mask = nib.load(FILES / "ixi013_mask_4mm.nii.gz")
    scan = nib.load(tmp_path / "t2.nii.gz")
    nib.save(resample_from_to(mask, scan, order=0), tmp_path / "mask.nii.gz")
    stand_in(tmp_path / "bin", f"cp {tmp_path / 'mask.nii.gz'} ${{4%.nii.gz}}_bet.nii.gz")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    (tmp_path / "t1.nii.gz").write_bytes(b"no image")
    raw = RawScan("A", "ixi", {"t1": tmp_path / "t1.nii.gz", "t2": tmp_path / "t2.nii.gz"}, modality="t2")
    row = prepare_scan(raw, tmp_path / "Data", replace(COARSE, extractor="hd-bet"))
    assert (row["status"], row["brain"], list(row["left_out"])) == ("prepared", "hd-bet", ["t1"])
    assert 1300 < row["brain_ml"] < 1800
    assert sorted(path.name for path in (tmp_path / "Data/Train/ixi").iterdir()) == ["mask", "t2"]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ("other grid", "another grid"),
        ("empty mask", "mask holds nothing above 0.5"),
        ("no mask", "holds one value only"),
        ("truncated", "truncated or damaged"),
        ("gone", "no such file"),
        ("specks", "the brain mask holds 0 mL"),
    ],
)
def test_bad_scans_fail_with_one_clear_line_and_leave_nothing(tmp_path, change, fault):
    image, mask = tmp_path / "t1.nii.gz", tmp_path / "mask.nii.gz"
    shutil.copyfile(FILES / "ixi013_t1_4mm.nii.gz", image)
    shutil.copyfile(FILES / "ixi013_mask_4mm.nii.gz", mask)
    given: Path | None = mask
    if change == "other grid":
        shutil.copyfile(FILES / "mslub19_mask_4mm.nii.gz", mask)
    elif change == "empty mask":
        nib.save(nib.Nifti1Image(np.zeros((60, 60, 45), np.uint8), nib.load(image).affine), mask)
    elif change == "no mask":
        nib.save(nib.Nifti1Image(np.full((60, 60, 45), 9, np.uint8), nib.load(image).affine), image)
        given = None
    elif change == "specks":
        specks = np.zeros((60, 60, 45), np.uint8)
        specks[0, 0, 0], specks[-1, -1, -1] = 100, 200
        nib.save(nib.Nifti1Image(specks, nib.load(image).affine), mask)
        specks[1, 1, 1:21] = range(20)
        nib.save(nib.Nifti1Image(specks, nib.load(image).affine), image)
    elif change == "truncated":
        image.write_bytes(image.read_bytes()[:9000])
    else:
        image.unlink()
    row = prepare_scan(RawScan("A", "ixi", {"t1": image}, given), tmp_path / "Data", COARSE)
    assert row["status"] == "failed"
    assert fault in row["message"]
    assert "\n" not in row["message"]
    assert not (tmp_path / "Data").exists()


@pytest.mark.slow
def test_published_spacing(tmp_path):
    scans = raw_scans_of_one(tmp_path)
    row = prepare_scan(scans[0], tmp_path / "Data", Preparation())
    assert row["status"] == "prepared"
    stored = nib.load(tmp_path / "Data/Test/MSLUB/t1/patient19_t1.nii.gz")
    assert stored.header.get_zooms() == (1, 1, 1)
    assert 1000 < row["brain_ml"] < 2000


def raw_scans_of_one(folder: Path) -> list[RawScan]:
    raw = folder / "raw"
    raw.mkdir()
    for kind in ("t1", "seg"):
        shutil.copyfile(FILES / f"mslub19_{kind}_4mm.nii.gz", raw / f"patient19_{kind}.nii.gz")
    return raw_scans(raw, "mslub", "t1")
