"""Evaluate a detector on a cohort: thresholds from validation scans, measures of test scans, tables and pages."""

from brainuad.study.cohort import evaluate_cases
from brainuad.study.protocol import BASELINES, OURS, QUICK, REFERENCE, Protocol
from brainuad.study.scorer import CachedInference, Scorer, case_seed
from brainuad.study.tables import failures, headline, read_cases_csv, wide

__all__ = [
    "BASELINES",
    "OURS",
    "QUICK",
    "REFERENCE",
    "CachedInference",
    "Protocol",
    "Scorer",
    "case_seed",
    "evaluate_cases",
    "failures",
    "headline",
    "read_cases_csv",
    "wide",
]
