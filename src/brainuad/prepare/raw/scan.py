"""The files of one subject before preparation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RawScan:
    """One subject before preparation.

    Attributes:
        subject: Identifier, used in file names.
        dataset: Folder name in the paper's layout ("ixi", "MSLUB", ...).
        images: File by modality ("t1", "t2", "flair"); the path of a member of a tar archive goes through the archive.
        mask: Brain mask or parcellation (above 0.5 is brain) on the first image's grid, or None.
        lesion: Lesion labels on that grid, or None.
        split: "train", "val", "test", or "" for none.
        age: In years, or None.
        label: 0 for a healthy subject, else the data set's number; 1 if none is given and there is a lesion.
        modality: The requested image. The subject's other images are prepared with it where possible.
        folds: The split in every fold of cross-validation, ``split`` first; empty where only that is known.
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
        """Set the label of a subject with lesions, who is not healthy."""
        if self.lesion is not None and self.label == 0:
            object.__setattr__(self, "label", 1)

    def place(self, kind: str) -> str:
        """Return the path of "t1", "t2", "flair", "mask", "labels" or "seg" below ``Data`` of the paper's layout."""
        base = "Train" if self.dataset == "ixi" else "Test"
        return f"{base}/{self.dataset}/{kind}/{self.subject}_{kind}.nii.gz"
