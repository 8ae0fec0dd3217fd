"""Prepare raw scans in the paper's layout: brain extraction, atlas registration, bounding box, bias correction."""
