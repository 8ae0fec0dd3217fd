"""``brainuad bench``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from brainuad.cli.app import app
from brainuad.cli.options import Compile, Device, Json, Precision, known, listed
from brainuad.console import progress


def _size(text: str) -> tuple[int, int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text)
    if not match:
        raise typer.BadParameter(f"{text!r} is not like 96x96x50", param_hint="--size")
    x, y, z = (int(number) for number in match.groups())
    return x, y, z


@app.command(short_help="Time each stage on this machine.")
def bench(
    model: Annotated[
        str, typer.Option(metavar="NAME|DIR", help="Name of a shipped model, or folder of a model.")
    ] = "lite-t1",
    size: Annotated[
        list[str] | None,
        typer.Option(metavar="XxYxZ", help="Grid in voxels, the model's own by default; repeat."),
    ] = None,
    stages: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Stage, all by default; repeat, or use commas.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, metavar="N", help="Repeats; medians count.")] = 3,
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Threads, PyTorch's choice by default.")
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    compile: Compile = False,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="Write bench.json and bench.txt there."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Time each stage of a case, in turn with a plain implementation of the published pipeline."""
    sizes, wanted = [_size(text) for text in size or []], listed(stages)
    from brainuad.bench import STAGES, run_bench, table
    from brainuad.detector import load_model
    from brainuad.files import write_json, write_text

    known("--stages", wanted or [], list(STAGES))
    names = wanted or list(STAGES)
    detector = load_model(model, device, precision)
    with progress("Timing", max(len(sizes), 1) * len(names)) as advance:
        found = run_bench(
            detector.compile() if compile else detector,
            sizes,
            names,
            repeats=repeats,
            threads=threads,
            report=lambda what: advance(what=what),
        )
    text = table(found)
    if output is not None:
        write_text(output / "bench.txt", text + "\n")
        write_json(output / "bench.json", found.to_dict())
    print(json.dumps(found.to_dict(), indent=2) if as_json else text)
