"""Writes a scan as the DICOM series a scanner would have sent: one file a slice, or one file of many frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from brainuad.data.volume import Volume

# column index, row index and slice index grow towards
PLANES = {"axial": "LPS", "sagittal": "PIL", "coronal": "LIP", "axial from above": "LPI"}


def write_series(folder: Path, volume: Volume, *, plane: str = "axial", **tags: Any) -> list[Path]:
    """Write a volume of whole numbers, slice by slice.

    Args:
        folder: Made if missing.
        volume: Without shear.
        plane: One of ``PLANES``.
        **tags: Attributes to set in all files, by keyword.

    Returns:
        The files, in the order of slices.
    """
    array, affine = in_plane(volume, plane)
    folder.mkdir(parents=True, exist_ok=True)
    common = header(affine, **tags)
    paths = []
    for index in range(array.shape[2]):
        image = pydicom.Dataset(common)
        image.file_meta = common.file_meta
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        image.InstanceNumber = index + 1
        place(image, affine, index)
        pixels(image, array[:, :, index].T)
        paths.append(folder / f"IM{index:04d}")
        image.save_as(paths[-1], enforce_file_format=True)
    return paths


def write_multiframe(path: Path, volume: Volume, *, plane: str = "axial", **tags: Any) -> None:
    """Write a volume of whole numbers as one enhanced MR image."""
    array, affine = in_plane(volume, plane)
    image = header(affine, SOPClassUID=EnhancedMRImageStorage, **tags)
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    image.NumberOfFrames = array.shape[2]
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = image.PixelSpacing, image.SliceThickness
    measures.SpacingBetweenSlices = image.SpacingBetweenSlices
    orientation.ImageOrientationPatient = image.ImageOrientationPatient
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = (Sequence([measures]), Sequence([orientation]))
    image.SharedFunctionalGroupsSequence = Sequence([shared])
    image.DimensionOrganizationType = "3D"
    frames = []
    for index in range(array.shape[2]):
        frame, position, content = Dataset(), Dataset(), Dataset()
        place(position, affine, index)
        content.StackID, content.InStackPositionNumber = "1", index + 1
        content.DimensionIndexValues = [1, index + 1]
        frame.PlanePositionSequence, frame.FrameContentSequence = Sequence([position]), Sequence([content])
        frames.append(frame)
    image.PerFrameFunctionalGroupsSequence = Sequence(frames)
    pixels(image, np.moveaxis(array, (2, 1, 0), (0, 1, 2)))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save_as(path, enforce_file_format=True)


def in_plane(volume: Volume, plane: str) -> tuple[np.ndarray, np.ndarray]:
    """Return ``(columns, rows, slices)`` and the affine to DICOM's millimetres (left, posterior, superior)."""
    to_plane = axcodes2ornt(tuple(PLANES[plane]))
    affine = volume.affine @ inv_ornt_aff(to_plane, volume.array.shape)
    return apply_orientation(volume.array, to_plane), np.diag([-1.0, -1, 1, 1]) @ affine


def header(affine: np.ndarray, **tags: Any) -> Dataset:
    """Return what all slices share."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image = Dataset()
    image.PatientName, image.PatientID, image.PatientBirthDate, image.PatientSex = "Test^Brain", "7", "", ""
    image.StudyInstanceUID, image.SeriesInstanceUID = generate_uid(), generate_uid()
    image.FrameOfReferenceUID = generate_uid()
    image.StudyDate, image.StudyTime, image.StudyID, image.AccessionNumber = "20200102", "101112", "1", ""
    image.ReferringPhysicianName, image.PositionReferenceIndicator = "", ""
    image.Modality, image.SOPClassUID, image.Manufacturer = "MR", MRImageStorage, "brainuad tests"
    image.SeriesNumber, image.SeriesDescription, image.ProtocolName = 3, "t1_mprage_sag", "t1_mprage_sag"
    image.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
    image.ScanningSequence, image.SequenceVariant, image.MRAcquisitionType = ["GR", "IR"], "SP", "3D"
    image.EchoTime, image.RepetitionTime, image.InversionTime, image.FlipAngle = 3.0, 2000.0, 900.0, 9.0
    image.ImageOrientationPatient = [*(affine[:3, 0] / spacing[0]), *(affine[:3, 1] / spacing[1])]
    image.PixelSpacing = [float(spacing[1]), float(spacing[0])]
    image.SliceThickness = image.SpacingBetweenSlices = float(spacing[2])
    for name, value in tags.items():
        setattr(image, name, value)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, image.SOPClassUID
    image.file_meta = meta
    return image


def place(image: Dataset, affine: np.ndarray, index: int) -> None:
    image.ImagePositionPatient = [float(value) for value in (affine @ [0, 0, index, 1])[:3]]


def pixels(image: Dataset, array: np.ndarray) -> None:
    """Set unsigned 16-bit values, ``(rows, columns)`` or ``(frames, rows, columns)``."""
    image.Rows, image.Columns = array.shape[-2:]
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated = image.BitsStored = 16
    image.HighBit, image.PixelRepresentation = 15, 0
    image.PixelData = np.ascontiguousarray(array).astype("<u2").tobytes()
