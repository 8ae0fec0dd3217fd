"""The contrast of a scan, judged by its name or description."""

from __future__ import annotations

import re

_WORDS = {
    "t1": {"t1", "t1w", "t1wi", "t1n", "mprage", "bravo", "spgr", "fspgr", "tfl3d"},
    "t2": {"t2", "t2w", "t2wi"},
    "flair": {"flair", "flairw", "t2flair", "t2f", "darkfluid"},
    "no MR": {"ct", "ncct", "cta", "pet", "fdg"},
}
_OTHER = {"dwi", "adc", "trace", "bold", "swi", "tof", "pdw"}
_AGENT = {"t1ce", "t1c", "t1gd", "t1post", "gd", "gad"}


def contrast_of(text: str, modality: str) -> str:
    """Return whether the words of a name or description say that a scan has a given contrast.

    It is "same" if they name the modality and no contrast agent, "other" if they name something else, else "".
    """
    words = set(re.split(r"[^a-z0-9]+", text.lower()))
    if words & (_OTHER | _AGENT):
        return "other"
    named = {key for key, names in _WORDS.items() if words & names}
    if {"dark", "fluid"} <= words:
        named.add("flair")
    if named == {"t2", "flair"}:  # a FLAIR is often called T2 FLAIR
        named = {"flair"}
    if named == {"t1", "flair"}:  # there is a T1 that suppresses fluid, too
        return "other"
    if modality in named:
        return "same"
    return "other" if named else ""
