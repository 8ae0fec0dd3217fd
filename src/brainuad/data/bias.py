"""How a prepared scan's bias field was corrected: said in its header, and compared with what a model learnt on."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from brainuad.data.cohort import Case
from brainuad.data.nifti import read_header
from brainuad.data.volume import Volume
from brainuad.errors import InputError

logger = logging.getLogger(__name__)
_NOTE = "brainuad: bias levels {}"


def with_bias_levels(volume: Volume, levels: int) -> Volume:
    """Return a volume whose header says how many levels its bias correction had."""
    header = volume.header.copy()
    header["descrip"] = _NOTE.format(levels)
    return replace(volume, header=header)


def bias_levels_of(path: Path) -> int | None:
    """Return how many levels of bias correction a file's header names; None if it does not say, or cannot be read."""
    try:
        text = bytes(read_header(path)["descrip"]).decode("latin-1")
    except InputError:
        return None  # reading the scan itself will say what is wrong with it
    said = re.match(_NOTE.format(r"(\d+)"), text)
    return int(said[1]) if said else None


def warn_of_other_bias_levels(cases: Sequence[Case], levels: int) -> None:
    """Warn of scans that were prepared with other levels of bias correction than a model expects: maps suffer."""
    others = [(case, said) for case in cases if (said := bias_levels_of(case.image)) not in (None, levels)]
    if others:
        logger.warning(
            "%d of %d scans were prepared with another bias correction than the model is for (%s: %d levels, not %d). "
            "Prepare them again with --bias-levels %d, or expect worse maps",
            *(len(others), len(cases), others[0][0].image, others[0][1], levels, levels),
        )
