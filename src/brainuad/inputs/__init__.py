"""Finding and opening a user's scans: NIfTI files, folders, BIDS data sets, DICOM series, and their masks."""
