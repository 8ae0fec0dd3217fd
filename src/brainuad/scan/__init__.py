"""A scan of anybody's: found, scored, mapped in its own space, written down."""

from brainuad.scan.pipeline import ScanMaps, ScoreResult, map_scan, score

__all__ = ["ScanMaps", "ScoreResult", "map_scan", "score"]
