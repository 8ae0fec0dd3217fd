"""Evaluation of a detector on a cohort: thresholds from validation scans, figures of test scans, tables."""

from brainuad.evaluate.cache import Reconstructor
from brainuad.evaluate.cohort import evaluate_cases
from brainuad.evaluate.protocol import BASELINES, OURS, QUICK, REFERENCE, Protocol
from brainuad.evaluate.scorer import ScoredCase, Scorer, case_seed
from brainuad.evaluate.tables import failures, headline, read_cases_csv, wide

__all__ = [
    "BASELINES",
    "OURS",
    "QUICK",
    "REFERENCE",
    "Protocol",
    "Reconstructor",
    "ScoredCase",
    "Scorer",
    "case_seed",
    "evaluate_cases",
    "failures",
    "headline",
    "read_cases_csv",
    "wide",
]
