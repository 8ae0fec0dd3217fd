"""One subject before preparation."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RawScan:
    """One subject before preparation.

    Attributes:
        subject: Identifier, used in file names.
        dataset: Folder name in the paper's layout ("ixi", "MSLUB", ...).
        images: Modality ("t1", "t2") to file, or to a member of a tar archive, whose path goes through the archive's.
        mask: Brain mask or parcellation (above 0.5 is brain) on the first image's grid, or None.
        lesion: Lesion labels on that grid, or None.
        split: "train", "val", "test", or "" for none.
        age: In years, or None.
        label: 0 for a healthy subject, the data set's own number otherwise; 1 if not given and there is a lesion.
        modality: The image that was asked for. Others are prepared along with it where they can be.
        folds: The split in every fold of cross-validation, the first of which is ``split``; empty where only that one
            is known.
        lesion_label: The label that counts as lesion; None for all above 0.5.
    """

    subject: str
    dataset: str
    images: dict[str, Path]
    mask: Path | None = None
    lesion: Path | None = None
    split: str = ""
    age: float | None = None
    label: int = 0
    modality: str = "t1"
    folds: tuple[str, ...] = ()
    lesion_label: int | None = None

    def __post_init__(self) -> None:
        """A scan with lesions is not healthy."""
        if self.lesion is not None and self.label == 0:
            object.__setattr__(self, "label", 1)


def warn_left_out(subjects: Collection[str], why: str) -> None:
    """Log who of a data set is left out."""
    if subjects:
        names = ", ".join(sorted(subjects)[:5]) + (", ..." if len(subjects) > 5 else "")
        logger.warning("%d subject(s) left out, %s: %s", len(subjects), why, names)
