"""Small trees of the paper's data layout, made of copies of one real scan."""

from __future__ import annotations

import csv
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from brainuad.data.tables import SPLIT_COLUMNS

FILES = Path(__file__).parent / "files"


def write_split(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write a split file; None is written empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, SPLIT_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def split_row(name: str, folder: str, *, lesion: bool) -> dict[str, object]:
    """One row as the paper's split files have it; ``name`` is that of the T1 file without its ending."""
    return {
        "img_name": name,
        "age": 41.5 if not lesion else None,
        "label": int(lesion),
        "img_path": f"/{folder}/t1/{name}.nii.gz",
        "mask_path": f"/{folder}/mask/{name}.nii.gz",
        "seg_path": f"/{folder}/seg/{name}.nii.gz" if lesion else None,
    }


def place_scan(root: Path, row: dict[str, object], modalities: tuple[str, ...]) -> None:
    """Copy the small scan to where a row says it is, as a file of its own contents: the time in it is another."""
    image = str(row["img_path"])
    targets = {str(row["mask_path"]): "mask"} | ({str(row["seg_path"]): "seg"} if row["seg_path"] else {})
    for modality in modalities:
        targets[image.replace("/t1/", f"/{modality}/").replace("-T1", f"-{modality.upper()}")] = "t1"
    for target, kind in targets.items():
        path = root / target.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        contents = bytearray((FILES / f"mslub19_{kind}_4mm.nii.gz").read_bytes())
        contents[4:8] = zlib.crc32(target.encode()).to_bytes(4, "little")  # when gzip packed it
        path.write_bytes(contents)


def build_tree(data_dir: Path, *, level: str = "Data", modalities: tuple[str, ...] = ("t1",)) -> Path:
    """Make a ``DATA_DIR`` with IXI fold 0 and MSLUB, one or two subjects a split."""
    root = data_dir / level
    ixi, mslub = "Train/ixi", "Test/MSLUB"
    splits = {
        "IXI_train_fold0": [split_row(f"IXI{n}-Guys-0899-T1", ixi, lesion=False) for n in ("219", "002")],
        "IXI_val_fold0": [split_row("IXI035-IOP-0873-T1", ixi, lesion=False)],
        "IXI_test": [split_row("IXI552-Guys-1113-T1", ixi, lesion=False)],
        "MSLUB_val": [split_row("patient07-T1", mslub, lesion=True)],
        "MSLUB_test": [split_row("patient19-T1", mslub, lesion=True)],
    }
    for name, rows in splits.items():
        write_split(root / "splits" / f"{name}.csv", rows)
        for row in rows:
            place_scan(root, row, modalities)
    return data_dir
