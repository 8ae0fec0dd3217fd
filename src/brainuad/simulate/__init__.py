"""Simulated lesions in real healthy scans: functions on arrays, and whole cohorts.

Reports call these scans *simulated* and never pool them with real patients.
"""

from brainuad.simulate.cohort import shipped_outlines, simulate_cohort
from brainuad.simulate.subject import KINDS, Simulation

__all__ = ["KINDS", "Simulation", "shipped_outlines", "simulate_cohort"]
