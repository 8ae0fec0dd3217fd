"""``brainuad sweep``."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from brainuad.cli import options
from brainuad.cli.app import app
from brainuad.console import exit_by_failures, progress

ABLATIONS = ("windows", "postprocessing", "shared-noise")


@app.command(short_help="Measure every SSIM width and ensemble.")
def sweep(
    model: options.Model,
    data_dir: options.DataDir,
    output: options.Output,
    sigmas: Annotated[
        str, typer.Option(metavar="FIRST:LAST:STEP", help="Widths of SSIM in voxels; or a list with commas.")
    ] = "0.3:3.0:0.2",
    ensembles: Annotated[
        list[str] | None, options.several("Ensembles: default, mean, max, min, softmin, learnt", "Default: all.")
    ] = None,
    ablate: Annotated[list[str] | None, options.several("Ablations: windows, postprocessing, shared-noise")] = None,
    timesteps: Annotated[
        list[str] | None, options.several("Further noise levels to reconstruct at", metavar="T")
    ] = None,
    draws: Annotated[list[str] | None, options.several("Further numbers of draws to average", metavar="N")] = None,
    sets: options.Sets = None,
    split: options.Split = "test",
    device: options.Device = "auto",
    precision: options.Precision = "auto",
) -> None:
    """Measure average precision and Dice of every SSIM width and ensemble on annotated scans, by pathology."""
    from brainuad.data.cohort import read_cases
    from brainuad.data.leaks import leak_free, scans_of_others
    from brainuad.detector import load_model
    from brainuad.scoring.ensembles import ENSEMBLES
    from brainuad.study.sweep import Ablations, run_sweep

    options.check_known("--ensembles", ensembles, ENSEMBLES)
    options.check_known("--ablate", ablate, ABLATIONS)
    names, vary = ensembles or list(ENSEMBLES), ablate or []
    ablations = Ablations(
        windows="windows" in vary,
        postprocessing="postprocessing" in vary,
        timesteps=_numbers("--timesteps", timesteps),
        draws=_numbers("--draws", draws),
        shared_noise="shared-noise" in vary,
    )
    widths = parse_sigmas(sigmas)
    detector = load_model(model, device, precision)
    cases = leak_free(read_cases(data_dir, detector.modality, detector.provenance.get("fold") or 0, training=False))
    options.check_known("--sets", sets, (case.dataset for case in cases))
    teachers = [case for case in cases if case.split == "val" and case.lesion is not None]
    if not ensembles and not (scans_of_others(teachers) if split == "val" else teachers):
        names.remove("learnt")  # no annotated validation scan to learn from, and nobody asked for it
    measured = [case for case in cases if case.split == split and case.lesion is not None]
    total = sum(not sets or case.dataset in sets for case in measured)
    with progress("Sweeping", total) as advance:
        table, failed = run_sweep(
            detector,
            cases,
            output,
            sigmas=widths,
            ensembles=names,
            ablations=ablations,
            split=split,
            sets=sets or None,
            report=advance.case,
        )
    if len(table):
        print((output / "summary.md").read_text(encoding="utf-8"), end="")
        print(f"\nFigure: {output / 'sweep.png'}; page: {output / 'summary.html'}")
    exit_by_failures(len(failed), total)


def parse_sigmas(text: str) -> list[float]:
    """Return widths from "0.3:3.0:0.2" (the last included where a step reaches it) or "0.3,0.9"."""
    try:
        if ":" not in text:
            found = [float(part) for part in text.split(",")]
        else:
            first, last, step = (float(part) for part in text.split(":"))
            if step <= 0:
                raise ValueError
            count = int((last - first) / step + 1e-6) + 1
            found = [round(first + i * step, 6) for i in range(count)]
        if not found or not all(0.05 <= sigma <= 50 for sigma in found):
            raise ValueError
    except (ValueError, OverflowError):
        fault = f"{text!r} is neither FIRST:LAST:STEP nor a list of widths from 0.05 to 50 voxels"
        raise typer.BadParameter(fault, param_hint="--sigmas") from None
    return list(dict.fromkeys(found))


def _numbers(option: str, words: list[str] | None) -> tuple[int, ...]:
    for word in words or ():
        if not re.fullmatch(r"[1-9]\d*", word):
            raise typer.BadParameter(f"{word!r} is no positive whole number", param_hint=option)
    return tuple(dict.fromkeys(int(word) for word in words or ()))
