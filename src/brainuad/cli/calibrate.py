"""``brainuad calibrate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from brainuad.cli import options
from brainuad.cli.app import app
from brainuad.console import announce, exit_by_status, print_rows, progress, say


@app.command(short_help="Measure a model's thresholds on healthy scans.")
def calibrate(
    model: options.Model,
    healthy: Annotated[
        list[Path],
        typer.Argument(
            metavar="HEALTHY",
            help="Healthy scans as `brainuad score` accepts them, or one manifest CSV or folder in the paper's layout.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="DIR",
            help="Folder for a calibrated copy of the model. Without it MODEL itself is changed.",
        ),
    ] = None,
    brain_mask: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of brain masks, named after their scans.")
    ] = None,
    jobs: options.ScansAtOnce = 1,
    threads: options.Threads = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    seed: options.Seed = 0,
    as_json: options.Json = False,
) -> None:
    """Measure a model's thresholds on healthy scans, best from your own scanner. A rerun skips finished scans."""
    announce(f"loading {model}")
    from brainuad.calibration import FEW_SCANS
    from brainuad.scan.calibrate import calibrate as run

    options.use_threads(threads)
    with progress("Calibrating", None) as advance:

        def report(row: dict[str, Any], total: int) -> None:
            message = f"left out {row['name']}: {row['message']}" if row["message"] else ""
            advance(message, total=total, skipped=row["status"] == "skipped")

        made = run(
            model,
            healthy,
            output,
            brain_mask=brain_mask,
            jobs=jobs,
            device=device,
            precision=precision,
            seed=seed,
            report=report,
            stage=advance.stage,
        )
    calibration = made.calibration
    if calibration.scans < FEW_SCANS:
        say(f"only {calibration.scans} healthy scans: use {FEW_SCANS} or more for reliable thresholds")
    if len(calibration.subjects) < 3:
        say("scores relative to health are left out: they need healthy scans of three subjects")
    if as_json:
        figures = {name: value for name, value in calibration.to_dict().items() if name != "looks"}
        print(json.dumps({"folder": str(made.folder), "rows": made.rows, "calibration": figures}, indent=2))
    else:
        print_rows([_threshold_row(calibration, made.score, at) for at in calibration.thresholds[made.score]], False)
        say(f"{calibration.scans} scans; use it with --model {made.folder}")
    exit_by_status(made.rows)


def _threshold_row(calibration: Any, score: str, fraction: float) -> dict[str, Any]:
    low, high = calibration.interval(score, fraction)
    threshold = calibration.threshold(score, fraction)
    return {
        "score": score,
        "healthy_voxels_above": f"{fraction:.1%}",
        "threshold": round(threshold, 4),
        "low": round(low, 4),
        "high": round(high, 4),
    }
