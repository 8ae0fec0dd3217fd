"""Which mask in a folder belongs to which scan, by the files' names."""

from __future__ import annotations

import re
from pathlib import Path

from brainuad.errors import InputError

_NIFTI = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)
_IMAGE = re.compile(r"(^|[_-])(t1|t2|t1w|t2w|flair|pd|image)$", re.IGNORECASE)


def mask_for(scan: Path, source: Path, *, words: tuple[str, ...]) -> Path | None:
    """Return the mask of a scan: ``source`` itself, or the file in that folder with the scan's name.

    For ``patient07_t1.nii.gz`` that is the file of the same name, or one that begins with ``patient07_`` and does not
    end as images do.

    Args:
        scan: The scan's file.
        source: A mask, or a folder that is searched with its subfolders.
        words: Of several files, those whose names hold one of these words are meant.

    Returns:
        None if the folder holds none.

    Raises:
        InputError: ``source`` does not exist, or several files could be meant.
    """
    if source.is_file():
        return source
    if not source.is_dir():
        raise InputError(source, "no such file or folder", "Check the path")
    stem = _NIFTI.sub("", scan.name)
    subject = _IMAGE.sub("", stem)
    files = [path for path in sorted(source.rglob("*")) if _NIFTI.search(path.name)]
    same = [path for path in files if _NIFTI.sub("", path.name) == stem and not _is_same(path, scan)]
    found = same or [path for path in files if _belongs(_NIFTI.sub("", path.name), subject)]
    found = [path for path in found if not _is_same(path, scan)]
    named = [path for path in found if any(word in path.name.lower() for word in words)]
    found = named or found
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise InputError(
            source, f"holds several masks for {scan.name} ({names})", "Keep one, or give the file"
        )
    return found[0] if found else None


def _is_same(path: Path, scan: Path) -> bool:
    """Whether a file is the scan itself, however the paths are written."""
    return path.resolve() == scan.resolve()


def _belongs(stem: str, subject: str) -> bool:
    rest = stem.removeprefix(subject)
    return rest != stem and (not rest or not rest[0].isalnum()) and not _IMAGE.search(rest)
