"""The patients of a data set, from the files that were found of each."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from brainuad.data.cohort import MODALITIES
from brainuad.prepare.raw.scan import RawScan
from brainuad.prepare.raw.splits import patient_split

logger = logging.getLogger(__name__)


def patients(
    dataset: str,
    modality: str,
    found: Iterable[tuple[str, dict[str, Path]]],
    *,
    needed: Sequence[str],
    without: str,
    lesion_label: int | None = None,
    person: Callable[[str], str] = lambda subject: subject,
) -> list[RawScan]:
    """Return the patients who have all that is needed, in the order given, and log who is left out.

    Args:
        found: Subjects and their files by modality, "mask" and "lesion".
        needed: Keys of the files without which a subject is left out, besides "lesion".
        without: What those lack who are left out, for the log.
        person: Returns the name that decides a subject's split.
    """
    found = list(found)
    complete = [(subject, files) for subject, files in found if {*needed, "lesion"} <= set(files)]
    left_out = sorted({subject for subject, _ in found} - {subject for subject, _ in complete})
    if left_out:
        names = ", ".join(left_out[:5]) + (", ..." if len(left_out) > 5 else "")
        logger.warning("%d subject(s) left out, without %s: %s", len(left_out), without, names)
    return [
        RawScan(
            subject, dataset, {m: files[m] for m in MODALITIES if m in files}, files.get("mask"), files["lesion"],
            splits=(patient_split(dataset, person(subject)),), modality=modality, lesion_label=lesion_label,
        )
        for subject, files in complete
    ]  # fmt: skip
