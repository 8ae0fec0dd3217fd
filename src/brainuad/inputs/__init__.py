"""From what a user points at to scans: folders, NIfTI files, BIDS, DICOM series, and masks beside them."""
