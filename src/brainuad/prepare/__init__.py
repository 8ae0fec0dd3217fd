"""From raw scans to the paper's data layout: brain extraction, atlas registration, bounding box, bias correction."""
