"""Simulated cohorts from healthy scans: which subjects get what, and the files."""

from brainuad.simulate.cohort import shipped_outlines, simulate_cohort
from brainuad.simulate.subject import KINDS, Simulation

__all__ = ["KINDS", "Simulation", "shipped_outlines", "simulate_cohort"]
