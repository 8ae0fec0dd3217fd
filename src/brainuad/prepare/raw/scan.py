"""The files of one subject before preparation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RawScan:
    """One subject before preparation."""

    subject: str  # identifier, used in file names
    dataset: str  # folder name in the paper's layout ("ixi", "MSLUB", ...)
    # file by modality ("t1", "t2", "flair"); the path of a member of a tar archive goes through the archive
    images: dict[str, Path]
    mask: Path | None = None  # brain mask or parcellation (above 0.5 is brain) on the first image's grid, or None
    lesion: Path | None = None  # lesion labels on that grid, or None
    # "train", "val", "test", or "" for none, in every fold of cross-validation of which it is known: the first at least
    splits: tuple[str, ...] = ("",)
    age: float | None = None  # in years, or None
    label: int = 0  # 0 for a healthy subject, else the data set's number; 1 if none is given and there is a lesion
    modality: str = "t1"  # the requested image. The subject's other images are prepared with it where possible
    lesion_label: int | None = None  # the label that counts as lesion; None for all above 0.5

    def __post_init__(self) -> None:
        """Set the label of a subject with lesions, who is not healthy."""
        if self.lesion is not None and self.label == 0:
            object.__setattr__(self, "label", 1)

    @property
    def split(self) -> str:
        """The split in the first fold."""
        return self.splits[0]

    def output_path(self, kind: str) -> str:
        """Return the path of "t1", "t2", "flair", "mask", "labels" or "seg" below ``Data`` of the paper's layout."""
        base = "Train" if self.dataset == "ixi" else "Test"
        return f"{base}/{self.dataset}/{kind}/{self.subject}_{kind}.nii.gz"
