"""``brainuad simulate``."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from brainuad.cli import options
from brainuad.cli.app import app
from brainuad.console import exit_by_status, print_rows, progress
from brainuad.data.cohort import PATHOLOGY_SETS, SPLITS, read_cases
from brainuad.errors import InputError

KINDS = ("stroke", "ms", "wmh", "tumour")  # those of brainuad.simulate, which is slow to import


def _above_zero(value: float) -> float:
    if not 0 < value < float("inf"):
        raise typer.BadParameter(f"{value:g} is not above 0")
    return value


@app.command(short_help="Put simulated lesions into healthy scans.")
def simulate(
    healthy: Annotated[
        Path, typer.Argument(metavar="HEALTHY_DIR", help="Output folder of `brainuad prepare`, or a manifest CSV.")
    ],
    output: options.Output,
    kind: Annotated[
        list[str] | None, options.several("Kinds of lesions", "Default: all.", metavar="|".join(KINDS))
    ] = None,
    seed: options.Seed = 0,
    modality: Annotated[
        str,
        options.one_of(
            PATHOLOGY_SETS, "Contrast of the images. With t2 or flair the healthy scans are simulated as well, from T1."
        ),
    ] = "t1",
    contrast: Annotated[
        float, typer.Option(metavar="X", callback=_above_zero, help="Factor on the contrast of lesions.")
    ] = 1.0,
    size: Annotated[
        float, typer.Option(metavar="X", callback=_above_zero, help="Factor on the volume of lesions.")
    ] = 1.0,
    split: Annotated[
        list[str] | None,
        options.several("Splits", "Default: val and test, for t2 and flair train as well.", metavar="|".join(SPLITS)),
    ] = None,
    fold: Annotated[int, typer.Option(min=0, metavar="N", help="Cross-validation fold of the paper's layout.")] = 0,
    outlines: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of stroke outlines, NIfTI in MNI152 space. Default: the real ones that come with brainuad.",
        ),
    ] = None,
    jobs: options.Jobs = 1,
    as_json: options.Json = False,
) -> None:
    """Put simulated lesions into healthy scans: images, ground truths and a manifest for `brainuad evaluate`."""
    options.check_known("--kind", kind, KINDS)
    options.check_known("--split", split, SPLITS)
    splits = split or [name for name in SPLITS if modality != "t1" or name != "train"]
    from brainuad.simulate import Simulation, shipped_outlines, simulate_cohort

    settings = Simulation(tuple(dict.fromkeys(kind or KINDS)), modality, seed, contrast, size)
    cases = [case for case in read_cases(healthy, "t1", fold, training=False) if case.split in splits]
    if healthy.resolve() == (output / "manifest.csv").resolve():
        raise InputError(healthy, "would be written over", "Choose another output folder")
    with (
        nullcontext(outlines) if outlines else shipped_outlines() as folder,
        progress("Simulating", len(cases)) as advance,
    ):

        def report(row: dict[str, Any]) -> None:
            advance(f"failed: {row['subject']}: {row['message']}" if row["message"] else "")

        table = simulate_cohort(cases, output, settings, outlines=folder, jobs=jobs, report=report)
    rows = [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]
    print_rows(rows, as_json)
    exit_by_status(rows)
