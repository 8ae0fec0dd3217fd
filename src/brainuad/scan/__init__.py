"""Score a user's scans: maps in the scan's own space, findings, and their files."""

from brainuad.scan.api import score
from brainuad.scan.pipeline import map_scan, score_scan
from brainuad.scan.result import ScoreResult

__all__ = ["ScoreResult", "map_scan", "score", "score_scan"]
