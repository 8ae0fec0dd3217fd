"""A scan of anybody's: found, scored, mapped in its own space, written down."""

from brainuad.scan.api import score
from brainuad.scan.assess import score_scan
from brainuad.scan.pipeline import ScanMaps, map_scan
from brainuad.scan.result import ScoreResult

__all__ = ["ScanMaps", "ScoreResult", "map_scan", "score", "score_scan"]
