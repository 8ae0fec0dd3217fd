"""Raw scans as they lie on disk before preparation: one function a data set, each yielding :class:`RawScan` rows."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from brainuad.data.cohort import SPLITS
from brainuad.data.tables import parse_age, parse_label, read_table
from brainuad.errors import InputError

_IXI_ID = re.compile(r"IXI\d{3}")


@dataclass(frozen=True)
class RawScan:
    """One subject before preparation.

    Attributes:
        subject: Identifier, used in file names.
        dataset: Folder name in the paper's layout ("ixi", "MSLUB", ...).
        images: Modality ("t1", "t2") to file. One that lies on another grid than the first is resampled onto it.
        mask: Brain mask or parcellation (above 0 is brain) on the first image's grid; None for brain-extracted images.
        lesion: Lesion labels on that grid (above 0.5 is lesion), or None.
        split: "train", "val", "test", or "" for none.
        age: In years, or None.
        label: 0 for a healthy subject, the data set's own number otherwise; 1 if not given and there is a lesion.
    """

    subject: str
    dataset: str
    images: dict[str, Path]
    mask: Path | None = None
    lesion: Path | None = None
    split: str = ""
    age: float | None = None
    label: int = 0

    def __post_init__(self) -> None:
        """A scan with lesions is not healthy."""
        if self.lesion is not None and self.label == 0:
            object.__setattr__(self, "label", 1)


def ixi(root: Path, modality: str) -> list[RawScan]:
    """Healthy IXI scans: ``t1/`` (and ``t2/``), ``brainseg/`` or ``mask/``, ``participants.csv`` with splits and ages.

    Files of one subject are found by its ``IXI123`` number.
    """
    table = _participants(root)
    masks = {**_by_id(root / "mask"), **_by_id(root / "brainseg")}
    files = {m: _by_id(root / m) for m in ("t1", "t2")}
    scans = []
    for number, path in files[modality].items():
        images = {m: found[number] for m, found in files.items() if number in found}
        subject = re.split(r"[_.]|-T[12]", path.name)[0]
        row = table.get(number, {})
        split = row.get("split_fold0", "")
        scans.append(
            RawScan(
                subject, "ixi", images, masks.get(number),
                split=split if split in SPLITS else "", age=parse_age(row.get("age", "")),
            )
        )  # fmt: skip
    return scans


def mslub(root: Path, modality: str) -> list[RawScan]:
    """Brain-extracted MSLUB scans: ``patientNN_{t1,t2,seg}.nii.gz`` in one folder. Every patient is a test subject."""
    scans = []
    for path in sorted(root.glob(f"patient*_{modality}.nii.gz")):
        subject = path.name.split("_")[0]
        images = {m: p for m in ("t1", "t2") if (p := root / f"{subject}_{m}.nii.gz").exists()}
        lesion = root / f"{subject}_seg.nii.gz"
        if not lesion.exists():
            raise InputError(lesion, "the lesion mask of this patient is missing", "Copy it beside the image")
        scans.append(RawScan(subject, "MSLUB", images, lesion=lesion, split="test"))
    return scans


def manifest(root: Path, modality: str) -> list[RawScan]:
    """Scans listed in a CSV: ``subject,image,mask,seg,label,split`` (and ``dataset``, ``age``).

    ``mask`` may be empty for brain-extracted images, ``seg`` where there is no lesion mask. Paths are relative to the
    CSV. Without a ``dataset``, healthy scans go to "ixi" and others to "MANIFEST". A subject has one brain mask, which
    fits the modality prepared last: prepare T1 and T2 manifests into folders of their own.
    """

    def path(row: dict[str, str], column: str) -> Path | None:
        return root.parent / row[column] if row.get(column) else None

    scans = []
    for row, place in read_table(root, required=("subject", "image")):
        label = parse_label(row.get("label", ""), place) or int(bool(row.get("seg")))
        dataset = row.get("dataset") or ("MANIFEST" if label else "ixi")
        dataset = "ixi" if dataset.lower() == "ixi" else dataset
        for column, name in (("subject", row["subject"]), ("dataset", dataset)):
            if not re.fullmatch(r"\w[\w. +-]*", name):
                raise InputError(place, f"{column} {name!r} cannot be a file name", "Use letters and digits")
        if not row["image"]:
            raise InputError(place, "column image is empty", "Fill it in, or remove the row")
        if label and dataset == "ixi":
            fault = f"label {label} is not healthy, but all of data set ixi is"
            raise InputError(place, fault, "Give the scan another dataset")
        split = row.get("split", "")
        if split not in ("", *SPLITS):
            raise InputError(place, f"split {split!r} is unknown", f"Use one of {', '.join(SPLITS)}, or none")
        scans.append(
            RawScan(
                row["subject"], dataset, {modality: root.parent / row["image"]}, path(row, "mask"), path(row, "seg"),
                split=split, age=parse_age(row.get("age", "")), label=label,
            )
        )  # fmt: skip
    return scans


DATASETS: dict[str, Callable[[Path, str], list[RawScan]]] = {"ixi": ixi, "mslub": mslub, "manifest": manifest}


def raw_scans(root: str | Path, dataset: str, modality: str) -> list[RawScan]:
    """Find the raw scans of a data set.

    Raises:
        InputError: The folder does not exist or holds no scan of the data set; or a subject is listed twice.
    """
    root = Path(root)
    if not root.exists():
        raise InputError(root, "no such file or folder", "Give the folder (or manifest) of the raw scans")
    scans = DATASETS[dataset](root, modality)
    if not scans:
        raise InputError(
            root,
            f"holds no {modality} scan laid out like {dataset}",
            f"Expected: {DATASETS[dataset].__doc__}",
        )
    names = [scan.subject for scan in scans]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(
            root, f"lists subject(s) twice: {', '.join(twice)}", "Give each scan a subject name of its own"
        )
    return scans


def _by_id(folder: Path) -> dict[str, Path]:
    found = {}
    for path in sorted(folder.glob("*.nii*")) if folder.is_dir() else ():
        if match := _IXI_ID.search(path.name):
            found[match.group()] = path
    return found


def _participants(root: Path) -> dict[str, dict[str, str]]:
    path = root / "participants.csv"
    if not path.exists():
        return {}
    rows = [row for row, _ in read_table(path, required=("participant_id",))]
    return {m.group(): row for row in rows if (m := _IXI_ID.search(row["participant_id"]))}
