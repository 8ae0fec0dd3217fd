"""DICOM: find and convert series, and write findings as a segmentation."""

from brainuad.inputs.dicom.segmentation import write_segmentation
from brainuad.inputs.dicom.series import Series, is_dicom, is_volume, judge, list_series, pick_series
from brainuad.inputs.dicom.volume import read_series

__all__ = [
    "Series", "is_dicom", "is_volume", "judge", "list_series", "pick_series", "read_series", "write_segmentation",
]  # fmt: skip
