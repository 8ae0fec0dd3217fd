"""Findings as a DICOM segmentation (SEG) that refers to its source images, by highdicom."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid
from pydicom.valuerep import DA, TM

from brainuad._version import __version__
from brainuad.data.volume import RAS_TO_LPS, Volume, corners
from brainuad.errors import InputError
from brainuad.files import atomic_path
from brainuad.inputs.dicom.volume import find_series
from brainuad.record import Finding

_NOTE = "Research use only; not for diagnosis"
_TOLERANCE = 0.01  # mm between a voxel of the labels and its pixel
_SERIES_NUMBER = 9001
# Attributes that the standard requires but lets be empty (type 2). Anonymisation often removes them altogether.
_MAY_BE_EMPTY = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
_COMPLETE = "The NIfTI results are complete"
_NEEDED = ("StudyInstanceUID", "FrameOfReferenceUID", "SOPClassUID", "SOPInstanceUID")


def write_segmentation(
    labels: Volume, findings: Sequence[Finding], healthy_scans: int, series_folder: Path, series_uid: str, path: Path
) -> bool:
    """Write findings as binary segments on the frames of their source series.

    Args:
        labels: The label of the finding at each voxel, on the grid that the series converts to; 0 elsewhere.
        findings: Their order numbers the segments.
        healthy_scans: Healthy scans that the model was calibrated on.
        series_folder: Holds the series, directly or in a subfolder.
        series_uid: Its SeriesInstanceUID.
        path: Of the segmentation.

    Returns:
        Whether there was a finding. Without one nothing is written, because DICOM allows no empty segmentation.

    Raises:
        InputError: The series is missing, lies on another grid than the labels, or lacks an attribute that the
            standard requires.
    """
    if not findings:
        return False
    images, positions, sides = _source_images(series_folder, series_uid)
    _complete(images, positions, series_folder)
    pixels = _on_frames(labels, positions, sides, series_folder)
    segments = np.zeros(pixels.shape, dtype=np.uint8)
    for number, finding in enumerate(findings, 1):
        segments[pixels == finding.label] = number
    # the same findings in the same series get the same UIDs
    seeds = [series_uid, hashlib.sha256(segments.tobytes()).hexdigest(), __version__]
    described = [_segment(number, finding, healthy_scans, seeds) for number, finding in enumerate(findings, 1)]
    try:
        segmentation = highdicom.seg.Segmentation(
            source_images=images,
            pixel_array=segments,
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=described,
            series_instance_uid=generate_uid(entropy_srcs=[*seeds, "series"]),
            series_number=_SERIES_NUMBER,
            sop_instance_uid=generate_uid(entropy_srcs=[*seeds, "image"]),
            instance_number=1,
            manufacturer="brainuad",
            manufacturer_model_name="brainuad",
            software_versions=__version__,
            device_serial_number="0",
            series_description=f"brainuad findings. {_NOTE}",
            content_label="FINDINGS",
            content_description=_NOTE,
        )
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(series_folder, f"lacks what a DICOM segmentation must repeat ({error})", _COMPLETE) from error
    with atomic_path(path) as temporary:
        segmentation.save_as(temporary)
    return True


def _segment(number: int, finding: Finding, healthy_scans: int, seeds: list[str]) -> Any:
    """Return the description of a finding."""
    segment = highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=", ".join(filter(None, [f"finding {number}", finding.region])),
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Lesion,
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name="brainuad", version=__version__, family=codes.DCM.ArtificialIntelligence
        ),
        tracking_uid=generate_uid(entropy_srcs=[*seeds, "finding", str(number)]),
        tracking_id=f"finding {number}",
    )
    x, y, z = (round(value) for value in finding.mni_mm)
    words = [finding.region, f"MNI {x}, {y}, {z} mm", f"{finding.ml:.2f} mL", f"peak {finding.peak:.3f}"]
    if finding.healthy_alike is not None:
        words.append(f"similar in {finding.healthy_alike} of {healthy_scans} healthy scans")
    segment.SegmentDescription = f"{', '.join(filter(None, words))}. {_NOTE}"
    return segment


def _source_images(folder: Path, uid: str) -> tuple[list[Any], np.ndarray, np.ndarray]:
    """Return the headers of a series and the positions of its frames.

    Returns:
        The headers; ``(frames, 3)`` centres of the first pixels; ``(2, 3)`` steps from a column and from a row to the
        next. In mm, LPS.
    """
    try:
        images = [
            pydicom.dcmread(part.path, stop_before_pixels=True, force=True) for part in find_series(folder, uid).slices
        ]
        if "PerFrameFunctionalGroupsSequence" in images[0]:
            frames = images[0].PerFrameFunctionalGroupsSequence
            shared = images[0].SharedFunctionalGroupsSequence[0]
            positions = [frame.PlanePositionSequence[0].ImagePositionPatient for frame in frames]
            plane, measures = (
                (shared if name in shared else frames[0])[name][0]
                for name in ("PlaneOrientationSequence", "PixelMeasuresSequence")
            )
        else:
            positions = [image.ImagePositionPatient for image in images]
            plane = measures = images[0]
        directions = np.array(plane.ImageOrientationPatient, dtype=np.float64).reshape(2, 3)
        row_step, column_step = map(float, measures.PixelSpacing)  # DICOM gives the distance between rows first
        sides = directions * [[column_step], [row_step]]
        return images, np.array(positions, dtype=np.float64), sides
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, OSError) as error:
        missing = error.name if isinstance(error, AttributeError) else None
        fault = f"does not say where its images lie ({f'lacks {missing}' if missing else error})"
        raise InputError(folder, fault, _COMPLETE) from error


def _complete(images: list[Any], positions: np.ndarray, folder: Path) -> None:
    """Add missing attributes to the headers: empty values where allowed, and the slice distance as thickness.

    Malformed values count as missing. Text in a character set of which highdicom knows nothing becomes UTF-8.

    Raises:
        InputError: What may not be empty is missing.
    """
    apart = float(np.median(np.linalg.norm(np.diff(positions, axis=0), axis=1))) if len(images) > 1 else None
    for image in images:
        if missing := [name for name in _NEEDED if not image.get(name)]:
            fault = f"lacks {', '.join(missing)}, which a DICOM segmentation must repeat"
            raise InputError(folder, fault, _COMPLETE)
        kept = {name: image.get(name) if _is_usable(image, name) else "" for name in _MAY_BE_EMPTY}
        if not _knows_characters(image):
            kept = {name: str(value) for name, value in kept.items()}
            image.SpecificCharacterSet = "ISO_IR 192"
        for name, value in kept.items():
            setattr(image, name, value)
        if image.PatientSex not in ("", "M", "F", "O"):
            image.PatientSex = ""
        if apart and not image.get("SliceThickness"):
            image.SliceThickness = round(apart, 6)


def _is_usable(image: Any, name: str) -> bool:
    try:
        value = image.get(name)
        if name.endswith(("Date", "Time")):
            (DA if name.endswith("Date") else TM)(value)
        return value is not None
    except (AttributeError, LookupError, TypeError, ValueError):
        return False


def _knows_characters(image: Any) -> bool:
    named = image.get("SpecificCharacterSet") or []
    known = {value.value for value in highdicom.SpecificCharacterSetValues}
    return known.issuperset([named] if isinstance(named, str) else named)


def _on_frames(labels: Volume, positions: np.ndarray, sides: np.ndarray, folder: Path) -> np.ndarray:
    """Return labels as ``(frames, rows, columns)`` in the order of the frames, by reordering without interpolation."""
    order = np.argsort(positions @ np.cross(*sides))
    first, last = positions[order[0]], positions[order[-1]]
    to_lps = np.eye(4)
    to_lps[:3] = np.c_[sides[0], sides[1], (last - first) / max(len(order) - 1, 1), first]
    to_scanner = RAS_TO_LPS @ to_lps
    orientation = io_orientation(np.linalg.inv(to_scanner) @ labels.affine)
    moved = apply_orientation(labels.array, orientation)
    moved_affine = labels.affine @ inv_ornt_aff(orientation, labels.array.shape)
    apart = (moved_affine - to_scanner) @ corners(moved.shape)
    if moved.shape[2] != len(order) or np.abs(apart).max() > _TOLERANCE:
        raise InputError(folder, "does not lie where the findings lie", "Score the series anew")
    frames = np.empty((len(order), moved.shape[1], moved.shape[0]), dtype=np.int64)
    frames[order] = np.rint(moved.transpose(2, 1, 0)).astype(np.int64)
    return frames
