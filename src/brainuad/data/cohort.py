"""Which scans there are: one ``Case`` a scan, from the paper's data layout or from a plain CSV.

Nothing here opens an image. Whether the files are any good is the business of ``brainuad.data.check``.
"""

from __future__ import annotations

import logging
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from brainuad.data.tables import SPLIT_COLUMNS, has_no_rows, parse_age, parse_label, read_table
from brainuad.errors import InputError

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
HEALTHY_SET = "IXI"
PATHOLOGY_SETS = {
    "t1": ("Brats21", "MSLUB", "ATLAS_v2", "WMH"),
    "t2": ("Brats21", "MSLUB"),
    "flair": ("Brats21", "MSLUB", "WMH"),
}
MODALITIES = tuple(PATHOLOGY_SETS)
MANIFEST_COLUMNS = ("subject", "image", "mask", "seg", "label", "split")


@dataclass(frozen=True)
class Case:
    """One scan and what belongs to it.

    Attributes:
        subject: Who was scanned; equal in every split that lists the same person.
        dataset: Name of the data set ("IXI").
        split: "train", "val" or "test".
        image: The scan.
        mask: Brain mask on the same grid.
        lesion: Lesion mask on the same grid, or None.
        label: 0 for a healthy subject; the data set's own number otherwise.
        age: In years, or None where unknown.
        named_across: One subject name means one person in every data set, as in a manifest.
        extra: Name and value of a manifest's further columns ("site", "sex" ...), where they are filled in.
    """

    subject: str
    dataset: str
    split: str
    image: Path
    mask: Path
    lesion: Path | None
    label: int
    age: float | None
    named_across: bool = False
    extra: tuple[tuple[str, str], ...] = ()

    @property
    def healthy(self) -> bool:
        """Whether there is neither a label nor a lesion mask that says otherwise."""
        return self.label == 0 and self.lesion is None


def read_cases(source: str | Path, modality: str, fold: int = 0, *, training: bool = True) -> list[Case]:
    """Read cases from a manifest (a file ending in .csv, see `manifest_cases`) or the paper's data layout.

    In the layout IXI is healthy: training and validation of one fold, and a test split. Every other data set has a
    validation and a test split. Data sets without split files and IXI subjects without a scan of the modality are
    left out; that is logged as a warning.

    Args:
        source: The manifest, or the folder that holds ``Data/Train``, ``Data/Test`` and ``Data/splits``, or these
            directly.
        modality: One of ``MODALITIES``. A manifest names its images itself and does not depend on it.
        fold: Which of the layout's cross-validation folds.
        training: The fold's training and validation files must exist; otherwise they are read if they do.

    Raises:
        InputError: The folder or a needed file is missing, or a file makes no sense.

    Examples:
        >>> from importlib.resources import files
        >>> cases = read_cases(files("brainuad.assets") / "demo" / "manifest.csv", "t1")
        >>> len(cases)
        14
        >>> cases[0].subject, cases[0].dataset, cases[0].split
        ('BraTS2021_01484', 'BraTS 2021 (real tumour)', 'test')
    """
    path = Path(source)
    if path.suffix.lower() == ".csv":
        return manifest_cases(path)
    cases, notes = read_paper_layout(path, modality=modality, fold=fold, training=training)
    for note in notes:
        logger.warning("%s", note)
    return cases


def read_paper_layout(
    data_dir: str | Path, *, modality: str, fold: int, training: bool
) -> tuple[list[Case], list[InputError]]:
    """Return the cases of the paper's layout, and what ``read_cases`` logs: no errors, yet not to pass unseen."""
    if modality not in PATHOLOGY_SETS:
        raise InputError("modality", f"{modality!r} is unknown", f"Choose one of {', '.join(PATHOLOGY_SETS)}")
    root = find_layout(data_dir)
    files = [(f"{HEALTHY_SET}_{split}_fold{fold}", HEALTHY_SET, split) for split in ("train", "val")]
    files.append((f"{HEALTHY_SET}_test", HEALTHY_SET, "test"))
    files += [(f"{name}_{split}", name, split) for name in PATHOLOGY_SETS[modality] for split in ("val", "test")]
    cases: list[Case] = []
    notes: list[InputError] = []
    absent: list[str] = []
    for stem, dataset, split in files:
        path = root / "splits" / f"{stem}.csv"
        needed = training and stem.endswith(f"fold{fold}")
        if not path.is_file() or (not needed and has_no_rows(path)):
            if needed:
                present = ", ".join(map(str, paper_folds(data_dir))) or "none"
                raise InputError(path, "missing, and training needs it", f"Folds present: {present}")
            absent.append(path.name)
            continue
        found = list(_split_cases(path, root, dataset, split, modality))
        if modality != "t1" and dataset == HEALTHY_SET:
            found, note = _with_image(found, root, path, modality, needed=training)
            notes += note
        cases += found
    if not cases:
        raise InputError(root / "splits", f"lacks {', '.join(absent)}", "At least one is needed")
    if absent:
        notes.append(InputError(root / "splits", f"lacks {', '.join(absent)}", "Their scans are left out"))
    return cases, notes


def find_layout(data_dir: str | Path) -> Path:
    """Return the folder that holds ``Train``, ``Test`` and ``splits``: ``data_dir/Data`` or ``data_dir``."""
    candidates = [Path(data_dir) / "Data", Path(data_dir)]
    for root in candidates:
        if (root / "splits").is_dir():
            return root
    looked = " and ".join(str(root / "splits") for root in candidates)
    fault = "holds no splits folder" if Path(data_dir).is_dir() else "is no folder"
    raise InputError(data_dir, f"{fault} (looked for {looked})", "Set DATA_DIR to the folder that holds Data/splits")


def paper_folds(data_dir: str | Path) -> list[int]:
    """Return the folds that have a training file, in order."""
    names = (path.stem for path in (find_layout(data_dir) / "splits").glob(f"{HEALTHY_SET}_train_fold*.csv"))
    matches = (re.fullmatch(rf"{HEALTHY_SET}_train_fold(\d+)", name) for name in names)
    return sorted(int(match[1]) for match in matches if match)


def _split_cases(path: Path, root: Path, dataset: str, split: str, modality: str) -> Iterator[Case]:
    """Yield the cases of one split file of the paper's layout."""
    for row, location in read_table(path, required=set(SPLIT_COLUMNS) - {"age"}):
        image = image_path(row["img_path"], modality)
        yield Case(
            subject=subject_of(row["img_path"], row["img_name"], dataset),
            dataset=dataset,
            split=split,
            image=_inside(root, image, location),
            mask=_inside(root, row["mask_path"], location),
            lesion=_inside(root, row["seg_path"], location) if row["seg_path"] else None,
            label=parse_label(row["label"], location),
            age=parse_age(row.get("age", "")),
        )


def _with_image(
    cases: Sequence[Case], root: Path, path: Path, modality: str, *, needed: bool
) -> tuple[list[Case], list[InputError]]:
    """Keep the IXI cases of a split file that have a scan of a modality, by ``avail_t2.csv`` etc. or by the files."""
    listing = root / "splits" / f"avail_{modality}.csv"
    if listing.is_file():
        names = [row["0"] for row, _ in read_table(listing, required={"0"})]
        available = {subject_of(name, name, HEALTHY_SET) for name in names}
        kept = [case for case in cases if case.subject in available]
    else:
        kept = [case for case in cases if case.image.is_file()]
    what = f"{modality.upper()} scan"
    if not kept and needed:
        raise InputError(path, f"none of its subjects has a {what}", f"Put them below {cases[0].image.parent}")
    dropped = sorted({case.subject for case in cases} - {case.subject for case in kept})
    if not dropped:
        return kept, []
    names_dropped = ", ".join(dropped[:5]) + (", ..." if len(dropped) > 5 else "")
    return kept, [InputError(path, f"{len(dropped)} subjects have no {what} ({names_dropped})", "They are left out")]


def image_path(t1_path: str, modality: str) -> str:
    """Return the path of another scan beside a T1 scan: "t1" replaced in folder and file name, case kept."""
    *folders, name = t1_path.split("/")

    def other(match: re.Match[str]) -> str:
        return modality.upper() if match[0].isupper() else modality

    folders = [re.sub(r"(?i)^t1$", other, folder) for folder in folders]
    return "/".join([*folders, re.sub(r"(?i)(?<![a-z0-9])t1(?![0-9])", other, name)])


def subject_of(path: str, name: str, dataset: str) -> str:
    """Return who was scanned: the number of an IXI subject, else the file's name without format and modality.

    The splits of the paper spell an image's name in more than one way, so the name alone would hide a subject
    that is in two of them.

    >>> subject_of("/Train/ixi/t1/IXI219-Guys-0899-T1.nii.gz", "IXI219-Guys-0899-T1", "IXI")
    'IXI219'
    >>> subject_of("/Test/MSLUB/t1/patient07_T1w.nii.gz", "patient07", "MSLUB")
    'patient07'
    """
    if dataset == HEALTHY_SET:
        number = re.search(r"(?i)ixi(\d{3})(?!\d)", f"{posixpath.basename(path)} {name}")
        if number:
            return f"IXI{number[1]}"
    stem = re.sub(r"(?i)\.nii(\.gz)?$", "", posixpath.basename(path))
    return re.sub(r"(?i)[-_](t[12]w?|flair)$", "", stem)


def manifest_cases(path: str | Path) -> list[Case]:
    """Read a plain CSV: columns subject, image, mask, seg, label, split, perhaps dataset and age, and any others.

    Relative paths are relative to the CSV's folder. ``seg`` may be empty; an empty ``label`` is 1 where there is a
    ``seg``, else 0; ``dataset`` defaults to the name of the CSV.

    Raises:
        InputError: The file is missing, empty or lacks a column, or a row makes no sense.
    """
    path = Path(path)
    known = {*MANIFEST_COLUMNS, "dataset", "age"}
    cases = []
    for row, location in read_table(path, required=set(MANIFEST_COLUMNS)):
        for column in ("subject", "image", "mask"):
            if not row[column]:
                raise InputError(location, f"column {column} is empty", "Fill it in, or remove the row")
        check_split(row["split"], location)
        cases.append(
            Case(
                subject=row["subject"],
                dataset=row.get("dataset") or path.stem,
                split=row["split"],
                image=path.parent / row["image"],
                mask=path.parent / row["mask"],
                lesion=path.parent / row["seg"] if row["seg"] else None,
                label=parse_label(row["label"] or str(int(bool(row["seg"]))), location),
                age=parse_age(row.get("age", "")),
                named_across=True,
                extra=tuple((name, text) for name, text in row.items() if name not in known and text),
            )
        )
    return cases


def check_split(split: str, location: str, *, optional: bool = False) -> None:
    """Refuse the unknown split of a row, which may be "" if it is optional."""
    if split not in SPLITS and not (optional and not split):
        remedy = f"Use one of {', '.join(SPLITS)}" + (", or none" if optional else "")
        raise InputError(location, f"split {split!r} is unknown", remedy)


def _inside(root: Path, path: str, location: str) -> Path:
    """Return ``path``, whose leading slash stands for ``root``, refusing what leads out of ``root``."""
    if not path:
        raise InputError(location, "an image or mask path is empty", "Fill it in, or remove the row")
    relative = posixpath.normpath(path.lstrip("/"))
    if relative.startswith(".."):
        raise InputError(location, f"path {path!r} leads out of {root}", "Paths begin with /Train or /Test")
    return root / relative
