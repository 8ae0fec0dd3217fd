"""DICOM: find and convert series, and write findings as a segmentation."""
