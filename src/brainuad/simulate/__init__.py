"""Simulated lesions in real healthy scans: functions on arrays, and whole cohorts.

Reports call these scans *simulated* and never pool them with real patients.
"""

from brainuad.simulate.cohort import shipped_outlines, simulate_cohort
from brainuad.simulate.contrast import simulated_contrast
from brainuad.simulate.deform import jacobian, push, warp
from brainuad.simulate.hyperintensities import wmh
from brainuad.simulate.lesion import Layer, Lesion, paint
from brainuad.simulate.spots import ms
from brainuad.simulate.stroke import stroke_lesion
from brainuad.simulate.subject import KINDS, Simulation
from brainuad.simulate.tissue import Levels, Tissues, levels_of
from brainuad.simulate.tumour import tumour

__all__ = [
    "KINDS",
    "Layer",
    "Lesion",
    "Levels",
    "Simulation",
    "Tissues",
    "jacobian",
    "levels_of",
    "ms",
    "paint",
    "push",
    "shipped_outlines",
    "simulate_cohort",
    "simulated_contrast",
    "stroke_lesion",
    "tumour",
    "warp",
    "wmh",
]
