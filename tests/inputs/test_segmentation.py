"""Findings go back as a DICOM segmentation."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from dicom_heads import KINDS, find, head, oblique
from dicom_series import write_series
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from brainuad.data.volume import Volume
from brainuad.errors import InputError
from brainuad.inputs.dicom.segmentation import write_segmentation
from brainuad.inputs.scans import open_scan
from brainuad.record import Finding


def finding(label: int) -> Finding:
    origin = (0.0, 0.0, 0.0)
    return Finding(label, 1000, 1.0, 0.5, 0.4, origin, origin, origin, "midline")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("plane", ["axial", "sagittal"])
def test_findings_are_segments_that_lie_on_their_voxels(tmp_path, kind, plane):
    volume = oblique(head())
    KINDS[kind](tmp_path / "series", volume, plane=plane)
    (scan,) = find(tmp_path / "series")
    converted = open_scan(scan)
    labels = np.zeros(volume.array.shape, dtype=np.float32)
    labels[10:14, 20:25, 22:25], labels[25, 20, 12], labels[20:23, 11:13, 28] = 1, 2, 3
    about = replace(finding(1), region="left thalamus", mni_mm=(-10.6, -18.2, 8.0), ml=1.5, peak=0.5, healthy_alike=2)
    findings = [about, replace(about, label=2, region=""), replace(about, label=3, healthy_alike=None)]
    path = tmp_path / "out" / "segmentation.dcm"
    assert write_segmentation(converted.with_array(labels), findings, 35, scan.source, scan.series, path)

    segmentation = highdicom.seg.segread(path)
    assert segmentation.segment_numbers == [1, 2, 3]
    first = segmentation.get_segment_description(1)
    assert (first.segment_label, first.algorithm_type.name) == ("finding 1, left thalamus", "AUTOMATIC")
    assert [segmentation.get_segment_description(number).SegmentDescription for number in (1, 2, 3)] == [
        f"{words}. Research use only; not for diagnosis"
        for words in (
            "left thalamus, MNI -11, -18, 8 mm, 1.50 mL, peak 0.500, similar in 2 of 35 healthy scans",
            "MNI -11, -18, 8 mm, 1.50 mL, peak 0.500, similar in 2 of 35 healthy scans",
            "left thalamus, MNI -11, -18, 8 mm, 1.50 mL, peak 0.500",
        )
    ]
    assert (first.algorithm_identification.name, first.algorithm_identification.version) == ("brainuad", "0.1.0")
    assert "Research use only; not for diagnosis" in segmentation.ContentDescription
    sources = {pydicom.dcmread(file).SOPInstanceUID for file in (tmp_path / "series").iterdir()}
    assert {uid for _, _, uid in segmentation.get_source_image_uids()} == sources
    written = segmentation.get_volume(combine_segments=True)
    lps = np.diag([-1.0, -1, 1, 1]) @ volume.affine
    for label in (1, 2, 3):
        found = np.argwhere(written.array == label) @ written.affine[:3, :3].T + written.affine[:3, 3]
        expected = np.argwhere(labels == label) @ lps[:3, :3].T + lps[:3, 3]
        assert len(found) == len(expected)
        apart = np.linalg.norm(found[:, None] - expected[None], axis=2)
        assert apart.min(0).max() < 0.01
        assert apart.min(1).max() < 0.01


def test_what_removing_names_removes_is_left_empty(tmp_path):
    volume = head()
    paths = write_series(tmp_path / "series", volume)
    removed = (
        "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
        "AccessionNumber", "ReferringPhysicianName", "SliceThickness", "SpacingBetweenSlices",
    )  # fmt: skip
    for path in paths:
        image = pydicom.dcmread(path)
        for name in removed:
            delattr(image, name)
        image.save_as(path)
    (scan,) = find(tmp_path / "series")
    one = [finding(1)]
    path = tmp_path / "segmentation.dcm"
    labels = open_scan(scan).with_array(volume.array > 100)
    assert write_segmentation(labels, one, 35, scan.source, scan.series, path)
    written = pydicom.dcmread(path)
    assert all(str(written.get(name, "")) in ("", "None") for name in removed[:9])
    measures = written.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert float(measures.SliceThickness) == pytest.approx(4.0)


def segmented(folder: Path, edit: Callable[[pydicom.Dataset], None]) -> pydicom.Dataset:
    """Write a segmentation of a series whose headers were edited."""
    volume = head()
    for path in write_series(folder / "series", volume):
        image = pydicom.dcmread(path)
        edit(image)
        image.save_as(path)
    (scan,) = find(folder / "series")
    path, labels = folder / "segmentation.dcm", volume.with_array(volume.array > 100)
    assert write_segmentation(labels, [finding(1)], 35, scan.source, scan.series, path)
    return pydicom.dcmread(path)


def set_raw(image: pydicom.Dataset, name: str, value: bytes) -> None:
    """Set an attribute to what pydicom would not write."""
    tag = Tag(name)
    image._dict[tag] = RawDataElement(tag, dictionary_VR(tag), len(value), value, 0, False, True)


@pytest.mark.parametrize(
    ("name", "value"), [("PatientBirthDate", b"19xx-01 "), ("StudyDate", b"2020/13/40"), ("StudyTime", b"late")]
)
def test_a_malformed_value_that_may_be_empty_is_left_empty(tmp_path, name, value):
    written = segmented(tmp_path, lambda image: set_raw(image, name, value))
    assert not written.get(name)
    assert written.PatientID == "7"


@pytest.mark.parametrize(("charset", "name"), [("ISO_IR 6", "Test^Brain"), (["", "ISO 2022 IR 149"], "김^A")])
def test_a_character_set_that_highdicom_does_not_know_becomes_unicode(tmp_path, charset, name):
    def edit(image: pydicom.Dataset) -> None:
        image.PatientName = name
        image.SpecificCharacterSet = charset

    written = segmented(tmp_path, edit)
    assert written.PatientName == name
    assert written.SpecificCharacterSet == "ISO_IR 192"


@pytest.mark.parametrize("name", ["StudyInstanceUID", "FrameOfReferenceUID", "PixelSpacing"])
def test_what_a_segmentation_lacks_is_named(tmp_path, name):
    with pytest.raises(InputError, match=rf"[ (]lacks {name}[,)]"):
        segmented(tmp_path, lambda image: delattr(image, name))


def test_no_findings_make_no_segmentation_and_other_places_are_refused(tmp_path):
    volume = head()
    write_series(tmp_path / "series", volume)
    (scan,) = find(tmp_path / "series")
    path = tmp_path / "segmentation.dcm"
    assert not write_segmentation(volume, [], 35, scan.source, scan.series, path)
    one = [finding(1)]
    elsewhere = Volume.from_array(volume.array, np.array([[1, 0, 0, 1.0], *np.eye(4)[1:]]) @ volume.affine)
    with pytest.raises(InputError, match="does not lie where the findings lie"):
        write_segmentation(elsewhere, one, 35, scan.source, scan.series, path)
    for file in scan.source.iterdir():
        image = pydicom.dcmread(file)
        del image.FrameOfReferenceUID
        image.save_as(file)
    with pytest.raises(InputError, match="NIfTI results are complete"):
        write_segmentation(volume.with_array(volume.array > 0), one, 35, scan.source, scan.series, path)
    assert not path.exists()
