"""The names of scores: those of the registry, ``model``, ``rarity``, and those relative to health."""

from __future__ import annotations

from collections.abc import Iterable

from brainuad.registry import SCORES
from brainuad.scoring.rarity import RARITY, Part
from brainuad.scoring.scores import SECOND

INTENSITY_ATLAS = "intensity_atlas"
IMAGE = "image"  # the map that intensity_atlas is relative to
OWN_MAP = "model"  # the score that is the model's own map
_DESCRIPTIONS = {
    RARITY: "How rare a value is in healthy brains, fused over several scales: best on real validation scans.",
    OWN_MAP: "The model's own map, of models that make one.",
    INTENSITY_ATLAS: "The image in standard deviations from healthy scans at the same place: without a model.",
}


def score_names() -> list[str]:
    """Return every score: those of the registry, the model's own map, and those relative to health."""
    names = [*SCORES, OWN_MAP]
    return [RARITY, *names, INTENSITY_ATLAS, *(f"{name}_z" for name in names)]


def describe(name: str) -> str:
    """Return what a score is for, in a line: of a registered function, what its docstring begins with.

    Raises:
        InputError: The score is unknown.
    """
    if name in _DESCRIPTIONS:
        return _DESCRIPTIONS[name]
    base = base_of(name)
    if base is not None:
        return f"{base} in standard deviations above healthy scans at the same place."
    entry = SCORES[name]
    if name.startswith(SECOND):
        return f"{name.removeprefix(SECOND)} of the second reconstruction, of models that make two."
    text = entry.about if hasattr(entry, "about") else entry.__doc__ or ""
    line = " ".join(text.strip().split("\n\n")[0].split()).removeprefix("Return the ")
    return line[:1].upper() + line[1:]


def base_of(name: str) -> str | None:
    """Return the map that a score relative to health is made from; None for any other score.

    Raises:
        InputError: The score is unknown.
    """
    if name == INTENSITY_ATLAS:
        return IMAGE
    if name == RARITY:
        return None
    base = name if name in set(SCORES) else name.removesuffix("_z")
    if base != OWN_MAP:
        SCORES[base]  # raises with the nearest name
    return None if base == name else base


def relative_name(base: str) -> str:
    """Return the score that sets the map ``base`` against health; the inverse of `base_of`."""
    return INTENSITY_ATLAS if base == IMAGE else f"{base}_z"


def bases_of(name: str, parts: Iterable[Part]) -> list[str]:
    """Return the maps that a score is made from: its own; of rarity, that of each part.

    Raises:
        InputError: The score is unknown.
    """
    names = dict.fromkeys(part.score for part in parts) if name == RARITY else [name]
    return [base_of(part) or part for part in names]
