"""Scans listed in a CSV."""

from __future__ import annotations

from pathlib import Path

from brainuad.data.cohort import check_split
from brainuad.data.tables import check_file_name, parse_age, parse_label, read_table
from brainuad.errors import InputError
from brainuad.prepare.raw.scan import RawScan


def manifest(root: Path, modality: str) -> list[RawScan]:
    """A CSV with the columns subject,image,mask,seg,label,split (and dataset, age).

    An empty ``mask`` means that the brain is extracted, an empty ``seg`` that there is no lesion mask. Paths are
    relative to the CSV. Without a ``dataset``, healthy scans go to "ixi" and others to "MANIFEST". A subject without
    a split gets none, because names do not show which scans are of one person. A subject has one brain mask, for one
    modality, so manifests of several modalities need separate output folders.
    """

    def path(row: dict[str, str], column: str) -> Path | None:
        return root.parent / row[column] if row.get(column) else None

    scans = []
    for row, location in read_table(root, required=("subject", "image")):
        label = parse_label(row.get("label", ""), location) or int(bool(row.get("seg")))
        dataset = row.get("dataset") or ("MANIFEST" if label else "ixi")
        dataset = "ixi" if dataset.lower() == "ixi" else dataset
        for column, name in (("subject", row["subject"]), ("dataset", dataset)):
            check_file_name(name, column, location)
        if not row["image"]:
            raise InputError(location, "column image is empty", "Fill it in, or remove the row")
        if label and dataset == "ixi":
            fault = f"label {label} is not healthy, but all of data set ixi is"
            raise InputError(location, fault, "Give the scan another dataset")
        split = row.get("split", "")
        check_split(split, location, optional=True)
        scans.append(
            RawScan(
                row["subject"], dataset, {modality: root.parent / row["image"]}, path(row, "mask"), path(row, "seg"),
                splits=(split,), age=parse_age(row.get("age", "")), label=label, modality=modality,
            )
        )  # fmt: skip
    return scans
