"""The contrast of a scan, judged by its name or description."""

from __future__ import annotations

import re

_WORDS = {"t1": {"t1", "t1w", "t1wi", "t1n", "mprage", "bravo", "spgr", "fspgr", "tfl3d"}, "t2": {"t2", "t2w", "t2wi"}}
_OTHER = {"flair", "t2flair", "t2f", "dwi", "adc", "trace", "bold", "swi", "tof", "pdw"}
_AGENT = {"t1ce", "t1c", "t1gd", "t1post", "gd", "gad"}


def contrast_of(text: str, modality: str) -> str:
    """Return whether a name or description says that a scan has a given contrast.

    Args:
        text: Words in letters and digits, separated by anything else.
        modality: "t1" or "t2".

    Returns:
        "same" if the words name the modality and no contrast agent, "other" if they name something else, "" if they
        name no contrast.
    """
    words = set(re.split(r"[^a-z0-9]+", text.lower()))
    others = set().union(*(names for key, names in _WORDS.items() if key != modality))
    if words & (_OTHER | _AGENT):
        return "other"
    if words & _WORDS[modality]:
        return "same"
    return "other" if words & others else ""
