"""``brainuad prepare``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from brainuad.cli import options
from brainuad.cli.app import app
from brainuad.console import exit_by_status, print_rows, progress
from brainuad.errors import InputError
from brainuad.prepare.raw import DATASETS, RawScan, raw_scans

EXTRACTORS = ("deepbet", "hd-bet")  # those of brainuad.prepare, which is slow to import


@app.command(short_help="Register raw scans to the atlas, in the paper's layout.")
def prepare(
    raw: Annotated[
        Path,
        typer.Argument(
            metavar="RAW", help="Raw scans as downloaded: a folder, a tar archive, or a CSV that lists them."
        ),
    ],
    output: options.Output,
    dataset: Annotated[str, options.one_of(DATASETS, "Data set that RAW comes from; it decides the layout.")],
    modality: options.Modality = "t1",
    spacing: Annotated[str, options.one_of(("1", "2"), "Voxel size in mm.")] = "1",
    extractor: Annotated[
        str,
        options.one_of(
            EXTRACTORS, "Program that extracts the brain where there is no mask. hd-bet must be installed separately."
        ),
    ] = "deepbet",
    bias_levels: Annotated[
        str, options.one_of(("1", "4"), "Levels of the bias correction: 4 as published; 1 spares large lesions.")
    ] = "4",
    splits: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV",
            help="Table with the columns subject and split (or split_fold0, ...). It replaces RAW's own splits.",
        ),
    ] = None,
    jobs: options.Jobs = 1,
    seed: options.Seed = 0,
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
) -> None:
    """Register raw scans to the atlas and write them in the paper's layout. A rerun skips finished scans.

    The brain mask is the given one; else, in a scan without skull, its foreground; else deepbet's (T1). A T2 or FLAIR
    uses the brain mask of the T1 of its session.
    """
    scans = raw_scans(raw, dataset, modality, splits=splits)
    if dry_run:
        print_rows([_scan_row(scan) for scan in scans], as_json)
        return
    from brainuad.prepare.cohort import prepare_cohort
    from brainuad.prepare.scan import Preparation
    from brainuad.prepare.tables import TABLES

    if raw.resolve() in [(output / name).resolve() for name in TABLES]:
        raise InputError(raw, "would be written over", "Choose another output folder")
    rows: list[dict[str, Any]] = []
    with progress("Preparing", len(scans)) as advance:

        def report(row: dict[str, Any]) -> None:
            rows.append(row)
            advance(f"{row['status']}: {row['subject']}: {row['message']}" if row["message"] else "")

        prepare_cohort(
            scans, output, Preparation(float(spacing), seed, extractor, int(bias_levels)), jobs=jobs, report=report
        )
    if as_json:
        print_rows(sorted(rows, key=lambda row: str(row["subject"])), as_json)
    else:
        counts = Counter(row["status"] for row in rows)
        print(", ".join(f"{counts[status]} {status}" for status in ("prepared", "skipped", "failed")))
        print(f"Every scan: {output / 'prepare.csv'}")
    exit_by_status(rows)


def _scan_row(scan: RawScan) -> dict[str, Any]:
    row = {"subject": scan.subject, "dataset": scan.dataset, "split": scan.split}
    files = {"image": ", ".join(map(str, scan.images.values())), "mask": scan.mask, "lesion": scan.lesion}
    return row | {name: str(path or "") for name, path in files.items()}
