"""IXI: healthy adults from three hospitals."""

from __future__ import annotations

import re
from pathlib import Path

from brainuad.data.cohort import MODALITIES, SPLITS
from brainuad.data.tables import parse_age, read_table
from brainuad.errors import InputError
from brainuad.prepare.raw.archives import nifti_files
from brainuad.prepare.raw.scan import RawScan
from brainuad.prepare.raw.splits import FOLDS, healthy_folds

_NUMBER = re.compile(r"IXI\d{3}")


def ixi(root: Path, modality: str) -> list[RawScan]:
    """IXI-T1.tar (and IXI-T2.tar), a folder of IXI012-HH-1211-T1.nii.gz, or folders t1 (t2, flair, brainseg or mask).

    Files of one subject have its number. ``participants.csv`` in the folder may give splits and ages, and
    ``IXI.csv`` (the published IXI.xls, saved as CSV) ages.
    """
    folder = root if root.is_dir() else root.parent
    files, masks = _sorted_into_folders(root) if (root / modality).is_dir() else (_downloaded(root), {})
    rows = _rows(folder / "participants.csv", "participant_id")
    people = {match.group(): row for row in rows if (match := _NUMBER.search(row["participant_id"]))}
    rows = _rows(folder / "IXI.csv", "IXI_ID", "AGE")
    ages = {f"IXI{int(row['IXI_ID']):03d}": row["AGE"] for row in rows if row["IXI_ID"].isdecimal()}
    scans = []
    for number, path in files[modality].items():
        person = people.get(number, {})
        splits = _splits(person) if people else healthy_folds("ixi", number)
        age = person.get("age") or ages.get(number, "")
        scans.append(
            RawScan(
                re.split(r"[_.]|-T[12]", path.name)[0], "ixi",
                {m: found[number] for m, found in files.items() if number in found}, masks.get(number),
                splits=splits, age=parse_age(age), modality=modality,
            )
        )  # fmt: skip
    return scans


def _sorted_into_folders(root: Path) -> tuple[dict[str, dict[str, Path]], dict[str, Path]]:
    files = {m: _by_number(sorted((root / m).glob("*.nii*"))) for m in MODALITIES}
    masks = [_by_number(sorted((root / name).glob("*.nii*"))) for name in ("mask", "brainseg")]
    return files, masks[0] | masks[1]


def _downloaded(root: Path) -> dict[str, dict[str, Path]]:
    found = nifti_files(root)
    return {
        m: _by_number([path for path in found if re.search(rf"-{m}\.nii(\.gz)?$", path.name, re.IGNORECASE)])
        for m in MODALITIES
    }


def _by_number(paths: list[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in paths:
        if (match := _NUMBER.search(path.name)) and found.setdefault(match.group(), path) is not path:
            raise InputError(path, f"and {found[match.group()]} are of one subject", "Keep one")
    return found


def _rows(path: Path, *required: str) -> list[dict[str, str]]:
    return [row for row, _ in read_table(path, required)] if path.exists() else []


def _splits(row: dict[str, str]) -> tuple[str, ...]:
    """Return a subject's split in each fold, "" for an unknown split."""
    named = [row[f"split_fold{fold}"] for fold in range(FOLDS) if f"split_fold{fold}" in row]
    return tuple(split if split in SPLITS else "" for split in named) or ("",)
