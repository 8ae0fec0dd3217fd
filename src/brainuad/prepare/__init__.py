"""From raw scans to the paper's data layout: brain extraction, atlas registration, bounding box, bias correction."""

from brainuad.prepare.cohort import prepare_cohort
from brainuad.prepare.scan import EXTRACTORS, Preparation, prepare_scan

__all__ = ["EXTRACTORS", "Preparation", "prepare_cohort", "prepare_scan"]
