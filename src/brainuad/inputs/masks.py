"""Match masks to scans by file name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Set
from dataclasses import dataclass
from pathlib import Path

from brainuad.errors import InputError
from brainuad.files import sha256

NIFTI = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)  # the ending of a file name
_IMAGE = frozenset({"t1", "t2", "t1w", "t2w", "flair", "pd", "image", "scan"})
_ANY_MASK = frozenset({"mask", "label", "labels", "dseg", "desc", "space", "orig"})


@dataclass(frozen=True)
class MaskKind:
    """The words in the names of a kind of mask, besides its scan's name."""

    words: frozenset[str]  # mark this kind of mask
    first: frozenset[str]  # are preferred: x_mask is taken as the brain mask before x_brain


BRAIN = MaskKind(
    frozenset({
        "brain", "brainmask", "brainseg", "bet", "hdbet", "synthstrip", "aseg", "aparc", "synthseg", "parcellation",
        "muse", "dlmuse", "wmparc",
    }),
    frozenset({"mask", "brainmask"}),
)  # fmt: skip
_LESIONS = frozenset({
    "lesion", "lesions", "seg", "segmentation", "roi", "gt", "truth", "consensus", "annotation", "wmh", "tumour",
    "tumor", "stroke",
})  # fmt: skip
LESION = MaskKind(_LESIONS, _LESIONS)
_TISSUE = frozenset({"gm", "wm", "csf", "pve", "pveseg", "probseg"})
_MARKS = BRAIN.words | LESION.words | _TISSUE | {"mask", "label", "labels", "dseg"}
# Words that no scan's name ends in. Others, such as "brain", also name a scan without skull.
_NEVER_SCANS = frozenset({
    "lesion", "lesions", "seg", "dseg", "probseg", "pveseg", "brainseg", "segmentation", "label", "labels", "aseg",
    "aparc", "wmparc", "synthseg", "parcellation", "muse", "dlmuse",
})  # fmt: skip


def masks_among(names: Iterable[str]) -> set[str]:
    """Return the names of masks among the NIfTI files of a folder.

    A name tells a mask by its last word (``x_brainmask``, ``x_seg``), or by words of masks behind the name of another
    file of the folder (``x_roi`` beside ``x`` or ``x_t1``), with a number at the end or none (``x_pve_0``).
    """
    words = {name: _words(name) for name in names if NIFTI.search(name)}
    others = {tuple(part) for part in words.values()}
    others |= {part[:-1] for part in others if len(part) > 1 and part[-1] in _IMAGE}
    return {name for name, part in words.items() if _is_mask(part, others)}


def _is_mask(name: list[str], others: Set[tuple[str, ...]]) -> bool:
    if name[-1].endswith("mask") or (len(name) > 1 and name[-1] in _NEVER_SCANS):
        return True
    # another name and words of masks; one that ends in a contrast (x_brain_t1) is a scan's
    if name[-1].isdigit():
        name = name[:-1]
    if not name or name[-1] in _IMAGE:
        return False
    known = _MARKS | _ANY_MASK | _IMAGE
    return any(
        tuple(name[:length]) in others and set(name[length:]) & _MARKS and set(name[length:]) <= known
        for length in range(1, len(name))
    )


def mask_for(scan: Path, source: Path, kind: MaskKind) -> Path | None:
    """Return the mask of a scan: ``source`` itself, or the file in or below that folder with the scan's name.

    The mask of ``patient07_t1.nii.gz`` is ``patient07_mask.nii.gz`` or ``patient07_t1_brain_mask.nii.gz``: the scan's
    name, with or without its contrast, and words of masks of the kind. Any other word (``patient07_followup_mask``),
    or another BIDS session or run, makes it the mask of another scan. A file with exactly the scan's name is its mask
    if no name has such words. The scan itself and its copies do not count as masks. The scan of a DICOM series has the
    name of its folder.

    Raises:
        InputError: ``source`` does not exist, or several files could be meant.
    """
    if source.is_file():
        return source
    if not source.is_dir():
        raise InputError(source, "no such file or folder", "Check the path")
    ranks: dict[Path, tuple[bool, bool, bool, int]] = {}
    for path in sorted(source.rglob("*")):
        if NIFTI.search(path.name) and not path.name.startswith("."):
            rank = _rank(_words(scan.name), _words(path.name), kind)
            if rank is not None and not _is_same(path, scan):
                ranks[path] = rank
    found = [path for path, rank in ranks.items() if rank == min(ranks.values())]
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise InputError(source, f"holds several masks for {scan.name} ({names})", "Keep one, or give the file")
    return found[0] if found else None


def _words(name: str) -> list[str]:
    return re.split(r"[\W_]+", NIFTI.sub("", name).lower())


def _rank(scan: list[str], name: list[str], kind: MaskKind) -> tuple[bool, bool, bool, int] | None:
    """Return a sort key, smallest for the best match to the scan's mask; None for a file that is not its mask."""
    if name == scan:
        return True, True, True, 0
    contrast = {word for word in scan[1:][-1:] if word in _IMAGE}
    subject = scan[: len(scan) - len(contrast)]
    rest = name[len(subject) :]
    allowed = _ANY_MASK | kind.words | contrast
    if name[: len(subject)] != subject or not set(rest) - contrast or not set(rest) <= allowed:
        return None
    return False, not set(rest) & kind.first, not set(rest) & kind.words, len(rest)


def _is_same(path: Path, scan: Path) -> bool:
    """Return whether a file is the scan itself, by whatever path, or a copy of it."""
    if path.resolve() == scan.resolve():
        return True
    both = scan.is_file() and path.is_file() and path.stat().st_size == scan.stat().st_size
    return both and sha256(path) == sha256(scan)
