"""Evaluation of a detector on a cohort: thresholds from validation scans, figures of test scans, tables."""

from brainuad.evaluate.cohort import ScoredCase, evaluate_cases
from brainuad.evaluate.measures import OURS, REFERENCE, Protocol
from brainuad.evaluate.tables import headline

__all__ = ["OURS", "REFERENCE", "Protocol", "ScoredCase", "evaluate_cases", "headline"]
