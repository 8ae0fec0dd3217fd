"""Simulated lesions in real healthy scans: pure functions on arrays.

What these make is called *simulated* wherever it is reported, and never pooled with real patients.
"""

from brainuad.data.simulate.deform import jacobian, push, warp
from brainuad.data.simulate.hyperintensities import wmh
from brainuad.data.simulate.lesion import Layer, Lesion, paint
from brainuad.data.simulate.spots import ms
from brainuad.data.simulate.stroke import ATLAS_TO_MNI, csf_of, stroke, stroke_lesion
from brainuad.data.simulate.t2 import simulated_t2
from brainuad.data.simulate.tissue import Levels, Tissues, levels_of
from brainuad.data.simulate.tumour import tumour

__all__ = [
    "ATLAS_TO_MNI",
    "Layer",
    "Lesion",
    "Levels",
    "Tissues",
    "csf_of",
    "jacobian",
    "levels_of",
    "ms",
    "paint",
    "push",
    "simulated_t2",
    "stroke",
    "stroke_lesion",
    "tumour",
    "warp",
    "wmh",
]
