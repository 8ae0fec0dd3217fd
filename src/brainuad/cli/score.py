"""``brainuad score``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from brainuad.cli import options
from brainuad.cli.app import app
from brainuad.console import announce, exit_by_status, print_rows, progress, say

SHOWN = ("name", "status", "score", "percentile", "findings", "rare", "lesion_ml")  # columns on the terminal

Inputs = Annotated[
    list[Path], typer.Argument(metavar="INPUT", help="NIfTI files, folders of them, a BIDS data set, DICOM folders.")
]
ScoreName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Anomaly score, see `brainuad scores`; paper is the paper's SSIM ensemble. Default: the model's own "
        "map, where it makes one; else rarity, which was best on real validation scans.",
    ),
]
Rate = Annotated[
    float,
    typer.Option(
        min=0.001,
        max=0.1,
        metavar="F",
        help="False-positive rate: fraction of a healthy brain's voxels above the threshold.",
    ),
]
Shard = Annotated[
    str,
    typer.Option(
        metavar="I/N",
        help="Score only part I of N of the scans and write no report. A last run without this option joins them.",
    ),
]


def _mask(help: str) -> Any:
    return typer.Option(metavar="FILE|DIR", help=help)


def _labels(what: str) -> Any:
    return typer.Option(metavar="LABEL", help=f"Score only this {what} of a BIDS data set; may be repeated.")


@app.command(short_help="Map anomalies in your own scans.")
def score(
    inputs: Inputs,
    output: options.Output,
    model: Annotated[
        str, typer.Option(metavar="NAME|DIR", help="Name of a shipped model, or a model's folder.")
    ] = "lite-t1",
    brain_mask: Annotated[Path | None, _mask("Brain mask, or a folder of masks named after their scans.")] = None,
    lesion_mask: Annotated[Path | None, _mask("Ground truth, or a folder of it. Only the report uses it.")] = None,
    score: ScoreName = None,
    fpr: Rate = 0.01,
    participant_label: Annotated[list[str] | None, _labels("subject")] = None,
    session: Annotated[list[str] | None, _labels("session")] = None,
    series: Annotated[str, typer.Option(metavar="UID", help="Score only this DICOM series.")] = "",
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    seed: options.Seed = 0,
    jobs: options.ScansAtOnce = 1,
    threads: options.Threads = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Score finished scans again.")] = False,
    shard: Shard = "",
    dry_run: options.DryRun = False,
    as_json: options.Json = False,
    no_report: Annotated[bool, typer.Option("--no-report", help="Write no report.html.")] = False,
) -> None:
    """Map anomalies in your own scans, each in its own space. A rerun skips finished scans. Research use only."""
    announce(f"loading {model}")
    from brainuad.detector import load_model
    from brainuad.inputs.scans import find_scans
    from brainuad.scan.run import Settings, score_scans
    from brainuad.scan.table import SCORES_CSV
    from brainuad.scoring.repertoire import PAPER

    options.known_scores("--score", [score] if score else None, [PAPER])
    number, parts = _part(shard)
    options.use_threads(threads)
    detector = load_model(model, device, precision)
    scans = find_scans(
        inputs,
        modality=detector.modality,
        output=output,
        participants=participant_label or (),
        sessions=session or (),
        series=series,
    )[number - 1 :: parts]
    if not scans:
        say(f"part {shard} holds no scan")
        return
    if dry_run:
        print_rows([_listed(scan) for scan in scans], as_json)
        return
    settings = Settings(detector.scores.called(score), fpr, seed, brain_mask, lesion_mask)
    with progress("Scoring", len(scans)) as advance:

        def report(row: dict[str, Any], skipped: bool) -> None:
            notes = row["message"] or row["warnings"]
            advance(f"{row['name']}: {notes}" if notes and not skipped else "", skipped=skipped)

        rows = score_scans(
            scans, detector, output, settings, jobs=jobs, overwrite=overwrite, report=report, stage=advance.stage
        )
    page = None
    if not (no_report or shard):
        from brainuad.report.page import build_report  # slow to import: the scoring did so beside its work

        page = build_report(output)
    if as_json:
        print(json.dumps({"scans": rows, "report": page and str(page)}, indent=2))
    else:
        print_rows([{column: row[column] for column in SHOWN} for row in rows], as_json=False)
        say(f"every scan: {output / SCORES_CSV}" + (f"; report: {page}" if page else ""))
    exit_by_status(rows)


def _listed(scan: Any) -> dict[str, Any]:
    from brainuad.inputs.scans import output_paths

    paths = {"source": str(scan.source), "result": output_paths(scan)["sidecar"]}
    return {"name": scan.name, "kind": scan.kind, **paths}


def _part(text: str) -> tuple[int, int]:
    """Return I and N of "I/N", 1 and 1 of nothing."""
    match = re.fullmatch(r"(\d+)/(\d+)", text or "1/1")
    number, parts = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= parts:
        raise typer.BadParameter(f"{text!r} is not like 2/10", param_hint="--shard")
    return number, parts
