"""The same scan as NIfTI and as DICOM is the same volume."""

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_heads import KINDS, find, head, oblique
from dicom_series import PLANES, write_series
from pydicom.uid import JPEGLSLossless, RLELossless, generate_uid
from tiny import IMAGE, tiny_detector

from brainuad.data.volume import Volume
from brainuad.errors import InputError
from brainuad.inputs.dicom.series import judge, list_series
from brainuad.inputs.scans import find_scans, open_scan, output_paths
from brainuad.scan import map_scan


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("place", [lambda volume: volume, oblique])
def test_a_series_is_the_volume_it_was_made_from(tmp_path, kind, plane, place):
    volume = place(head())
    KINDS[kind](tmp_path / "patient7", volume, plane=plane)
    (scan,) = find(tmp_path / "patient7")
    assert (scan.name, scan.source, scan.kind) == ("patient7", tmp_path / "patient7", "dicom")
    again = open_scan(scan)
    np.testing.assert_array_equal(again.array, volume.array)
    assert again.distance_to(volume) < 1e-3
    assert bytes(again.header["descrip"]).strip(b"\0") == b""


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
def test_compressed_series_are_read(tmp_path, syntax):
    volume = head()
    for path in write_series(tmp_path / "series", volume):
        image = pydicom.dcmread(path)
        image.compress(syntax, generate_instance_uid=False)
        image.save_as(path)
    np.testing.assert_array_equal(open_scan(find(tmp_path / "series")[0]).array, volume.array)


def test_files_without_preamble_are_read(tmp_path):
    volume = head()
    for path in write_series(tmp_path / "series", volume):
        image = pydicom.dcmread(path)
        del image.file_meta, image.preamble
        image.save_as(path, implicit_vr=True, little_endian=True)
        assert path.read_bytes()[128:132] != b"DICM"
    np.testing.assert_array_equal(open_scan(find(tmp_path / "series")[0]).array, volume.array)


def test_a_file_stands_for_its_series_and_others_beside_it_do_not_matter(tmp_path):
    volume = head()
    paths = write_series(tmp_path / "all", volume)
    shutil.copy(paths[3], paths[3].with_name("copy of one file"))
    shutil.copytree(tmp_path / "all", tmp_path / "kept")
    write_series(tmp_path / "other", volume.with_array(volume.array[::-1]), SeriesNumber=4)
    for path in (tmp_path / "other").iterdir():
        path.rename(tmp_path / "all" / f"other-{path.name}")
    (scan,) = find_scans([paths[5]], modality="t1", output=tmp_path / "out")
    assert (scan.name, scan.source) == ("all", tmp_path / "all")
    np.testing.assert_array_equal(open_scan(scan).array, volume.array)
    assert output_paths(scan)["segmentation"] == "all_segmentation.dcm"


def twice(study: dict[str, Path], folder: Path) -> str:
    """Copy the T1 of a study to a folder, and again as another series, whose UID is returned."""
    again = generate_uid()
    for name in ("SE2", "SE6"):
        shutil.copytree(study["SE2"], folder / name)
    for path in (folder / "SE6").iterdir():
        image = pydicom.dcmread(path)
        image.SeriesInstanceUID = again
        image.save_as(path)
    return again


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> dict[str, Path]:
    """A study with a localiser, a T1, a T2, a FLAIR, and a T1 with contrast agent."""
    root = tmp_path_factory.mktemp("study") / "export"
    volume = head()
    uid = generate_uid()
    t1 = {"EchoTime": 3, "RepetitionTime": 2000, "InversionTime": 900}
    late = {"EchoTime": 90, "RepetitionTime": 8000}
    for number, (name, tags) in enumerate(
        {
            "SE1": {"SeriesDescription": "localizer", "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
            "SE2": t1 | {"SeriesDescription": "sag 3D"},
            "SE3": late | {"SeriesDescription": "ax tse", "InversionTime": None},
            "SE4": late | {"SeriesDescription": "ax dark fluid", "InversionTime": 2500},
            "SE5": t1 | {"SeriesDescription": "sag 3D", "ContrastBolusAgent": "Gadovist"},
        }.items(),
        1,
    ):
        few = volume if number > 1 else Volume.from_array(volume.array[:, :, :3], volume.affine)
        write_series(root / name, few, StudyInstanceUID=uid, SeriesNumber=number, **tags)
    return {path.name: path for path in [root, *sorted(root.iterdir())]}


def test_of_a_study_the_one_scan_of_the_modality_is_taken(study):
    assert [scan.source for scan in find(study["export"])] == [study["SE2"]]
    assert [scan.source for scan in find(study["export"], modality="t2")] == [study["SE3"]]
    assert [scan.source for scan in find(study["export"], modality="flair")] == [study["SE4"]]
    everything = list_series(sorted(study["export"].rglob("IM*")))
    assert [judge(series, "t1") for series in everything] == ["same", "same", "other", "other", "other"]


def test_what_cannot_be_decided_is_listed_and_chosen_by_the_user(study, tmp_path):
    both = tmp_path / "both"
    again = twice(study, both)
    with pytest.raises(InputError, match="holds 2 MR volumes of one study, of which 2 are t1 scans") as raised:
        find(both)
    assert "--series UID" in str(raised.value)
    assert f"{again} (number 2, MR 'sag 3D', 30 images, TE 3 ms, TR 2000 ms)" in str(raised.value)
    assert [scan.source for scan in find(both, series=again)] == [both / "SE6"]
    with pytest.raises(InputError, match=r"holds no series '1\.2\.3'\. Choose one"):
        find(both, series="1.2.3")


def test_a_study_that_cannot_be_decided_stops_no_other(study, tmp_path, caplog):
    root = tmp_path / "patients"
    twice(study, root / "undecided")
    write_series(root / "decided", head())
    undecided, decided = sorted(find(root), key=lambda scan: scan.name, reverse=True)
    assert (decided.source, decided.fault) == (root / "decided", None)
    assert (undecided.source, undecided.kind) == (root / "undecided", "dicom")
    assert str(undecided.fault).startswith(f"{root / 'undecided'}: holds 2 MR volumes of one study, of which 2 are")
    assert str(undecided.fault) in caplog.text
    with pytest.raises(InputError, match="Choose one by --series UID"):
        open_scan(undecided)


def test_patients_in_one_folder_are_named_apart(tmp_path):
    volume = head()
    for name in "ab":
        write_series(tmp_path / name, volume)
        (tmp_path / "flat").mkdir(exist_ok=True)
        for path in (tmp_path / name).iterdir():
            path.rename(tmp_path / "flat" / (name + path.name))
    scans = find(tmp_path / "flat")
    assert [scan.source for scan in scans] == [tmp_path / "flat"] * 2
    assert len({scan.name for scan in scans}) == 2
    assert all(scan.name.startswith("flat_") for scan in scans)


def test_a_lone_volume_is_taken_with_a_warning_if_it_seems_of_another_contrast(study, caplog):
    assert [scan.source for scan in find(study["SE3"])] == [study["SE3"]]
    assert "does not look like a t1 scan" in caplog.text


def edit(paths: list[Path], **tags: object) -> None:
    for path in paths:
        image = pydicom.dcmread(path)
        for name, value in tags.items():
            setattr(image, name, value)
        image.save_as(path)


BAD_SERIES = {
    "missing slices": (lambda paths: [path.unlink() for path in paths[20:22]], "lacks 2 slice.s. of .* every 4 mm"),
    "two echoes": (lambda paths: [second_echo(path) for path in paths[:9]], "39 images at 30 places .*several echoes"),
    "several sizes": (lambda paths: edit(paths[:5], Rows=20, PixelData=bytes(20 * 26 * 2)), "mixes images of 20 x"),
    "several orientations": (
        lambda paths: edit(paths[:5], ImageOrientationPatient=[1, 0, 0, 0, 0, -1]), "mixes images of several orient"
    ),
    "no place": (lambda paths: edit(paths[:1], ImagePositionPatient=None), "does not say where its slice lies"),
    "truncated": (lambda paths: paths[7].write_bytes(paths[7].read_bytes()[:2000]), "dcm2niix"),
    "deflated": (lambda paths: [deflate(path) for path in paths], "holds no t1 scan|any more"),
    "unknown compression": (lambda paths: [as_high_throughput(path) for path in paths], "compressed as 'High-T"),
}  # fmt: skip


def second_echo(path: Path) -> None:
    image = pydicom.dcmread(path)
    image.SOPInstanceUID, image.EchoTime = generate_uid(), 30
    image.save_as(path.with_name(f"second-{path.name}"))


def deflate(path: Path) -> None:
    image = pydicom.dcmread(path)
    image.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    image.save_as(path)


def as_high_throughput(path: Path) -> None:
    image = pydicom.dcmread(path)
    image.file_meta.TransferSyntaxUID = pydicom.uid.HTJ2KLossless
    image.PixelData = pydicom.encaps.encapsulate([image.PixelData])
    image["PixelData"].VR = "OB"
    image["PixelData"].is_undefined_length = True
    image.save_as(path)


@pytest.mark.parametrize("kind", BAD_SERIES)
def test_a_bad_series_is_refused_with_its_fault(tmp_path, kind):
    damage, message = BAD_SERIES[kind]
    damage(write_series(tmp_path / "series", head()))
    with pytest.raises(InputError, match=message) as raised:
        open_scan(find(tmp_path / "series")[0])
    assert str(tmp_path) in str(raised.value)
    assert raised.value.remedy


def test_what_is_no_mr_volume_is_refused(tmp_path, study):
    write_series(tmp_path / "ct", head(), Modality="CT")
    for folder in (tmp_path / "ct", study["SE1"]):
        with pytest.raises(InputError, match="holds no MR volume, only"):
            find(folder)


def test_a_converter_that_hangs_or_is_missing_is_reported(tmp_path, monkeypatch):
    write_series(tmp_path / "series", head())
    (scan,) = find(tmp_path / "series")
    monkeypatch.setattr("brainuad.inputs.dicom.volume._TIME_LIMIT", 0.1)
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setattr("dcm2niix.bin", str(slow))
    with pytest.raises(InputError, match=r"longer than 0\.1 s"):
        open_scan(scan)
    monkeypatch.setattr("dcm2niix.bin", str(tmp_path / "gone"))
    with pytest.raises(InputError, match="cannot be run"):
        open_scan(scan)


def test_damaged_headers_are_left_out_and_nothing_else_happens(tmp_path):
    volume = head()
    sound = write_series(tmp_path / "series", volume)[0].read_bytes()
    rng = np.random.default_rng(5)
    paths = []
    for number in range(300):
        content = bytearray(sound[: rng.integers(200, 1800)] if number % 3 == 0 else sound)
        for _ in range(rng.integers(1, 8)):
            content[rng.integers(132, min(1500, len(content)))] = rng.integers(256)
        paths.append(tmp_path / f"damaged{number}")
        paths[-1].write_bytes(content)
    found = list_series(paths)
    assert 0 < sum(len(series.slices) for series in found) < 300


def test_images_of_one_number_at_several_places_are_no_copies(tmp_path, caplog):
    paths = write_series(tmp_path / "series", head())
    for path in paths:
        edit([path], SOPInstanceUID="1.2.3")
    (series,) = list_series([*paths, *paths[:2]])
    assert series.count == len(paths)


@pytest.mark.slow
def test_a_scan_has_the_same_map_as_nifti_and_as_dicom(tmp_path):
    brain = Volume.load(IMAGE)
    brain = brain.with_array(np.rint(brain.array))
    brain.save(tmp_path / "scan.nii.gz")
    write_series(tmp_path / "series", brain, plane="sagittal")
    detector = tiny_detector()
    scans = find_scans([tmp_path / "scan.nii.gz", tmp_path / "series"], modality="t1", output=tmp_path / "out")
    assert [scan.kind for scan in scans] == ["nifti", "dicom"]
    mapped = [map_scan(open_scan(scan), detector) for scan in scans]
    anomaly, again = (placed.back(maps.final["ssim_ensemble"]) for placed, maps, _ in mapped)
    assert anomaly.array.max() > 0
    assert again.distance_to(anomaly) < 1e-3
    np.testing.assert_allclose(again.array, anomaly.array, atol=1e-3)
