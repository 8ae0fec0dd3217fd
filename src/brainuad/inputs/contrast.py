"""What a name or a description says about the contrast of a scan."""

from __future__ import annotations

import re

_WORDS = {
    "t1": {"t1", "t1w", "t1wi", "t1n", "mprage", "bravo", "spgr", "fspgr", "tfl3d"},
    "t2": {"t2", "t2w", "t2wi"},
}
_OTHER = {"flair", "t2flair", "t2f", "dwi", "adc", "trace", "bold", "swi", "tof", "pdw"}
_AGENT = {"t1ce", "t1c", "t1gd", "t1post", "gd", "gad"}


def contrast_of(text: str, modality: str) -> str:
    """Judge by the words in a name or description.

    Args:
        text: Words in letters and digits, separated by anything else.
        modality: "t1" or "t2".

    Returns:
        "same" if they are of the modality and without contrast agent, "other" if they are not, "" if they do not say.
    """
    words = set(re.split(r"[^a-z0-9]+", text.lower()))
    others = set().union(*(names for key, names in _WORDS.items() if key != modality))
    if words & (_OTHER | _AGENT):
        return "other"
    if words & _WORDS[modality]:
        return "same"
    return "other" if words & others else ""
