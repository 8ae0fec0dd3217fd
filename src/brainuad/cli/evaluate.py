"""``brainuad evaluate``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from brainuad.cli import options
from brainuad.cli.app import app
from brainuad.console import announce, exit_by_failures, logger, progress
from brainuad.data.cohort import PATHOLOGY_SETS, paper_folds, read_cases
from brainuad.data.leaks import leak_free
from brainuad.errors import InputError


@app.command(short_help="Measure a model on test scans.")
def evaluate(
    context: typer.Context,
    model: options.Model,
    data_dir: options.DataDir,
    output: options.Output,
    sets: options.Sets = None,
    scores: Annotated[
        list[str] | None,
        options.several("Scores, '<score>_z' for one relative to health", "Default: as for `brainuad score`."),
    ] = None,
    modality: Annotated[
        str | None, options.one_of(PATHOLOGY_SETS, "Contrast of the images; the model must have been trained on it.")
    ] = None,
    fold: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Cross-validation fold. Default: the model's.")
    ] = None,
    voxels: Annotated[str, options.one_of(("brain", "grid"), "Voxels that the measures count.")] = "brain",
    native: Annotated[bool, typer.Option(help="Measure on the grid of the image files, too.")] = True,
    reference: Annotated[bool, typer.Option("--reference", help="Measure as the paper's release does.")] = False,
    maps: Annotated[bool, typer.Option("--maps", help="Write every map as NIfTI into maps/, too.")] = False,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    compile: Annotated[
        bool, typer.Option("--compile", help="Compile the network first: it takes a minute, then a GPU is faster.")
    ] = False,
    seed: options.Seed = 0,
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Measure a model on test scans, at thresholds from validation scans. A rerun skips finished scans.

    torchrun divides the scans among several processes: torchrun --nproc-per-node 4 --no-python brainuad evaluate ...
    """
    announce(f"loading {model}")
    from brainuad.detector import load_model
    from brainuad.study import OURS, REFERENCE, evaluate_cases, failures, headline
    from brainuad.study.ranks import joined_ranks

    options.known_scores("--scores", scores)
    options.use_threads(threads)
    ranks = context.with_resource(joined_ranks())
    detector = load_model(model, device, precision, fold=fold or 0)
    if compile:
        detector = detector.compile()
    if modality not in (None, detector.modality):
        fault = f"was trained on {detector.modality} images, not on {modality}"
        raise InputError(model, fault, f"Leave out --modality, or give a model of {modality}")
    fold = _fold_for(model, detector.provenance.get("fold"), fold, data_dir)
    rows = read_cases(data_dir, detector.modality, fold, training=False)
    options.check_known("--sets", sets, (case.dataset for case in rows))
    cases = rows if reference else leak_free(rows)
    if left_out := len(rows) - len(cases):
        logger.warning("left out %d rows: subjects in two splits, or images listed twice", left_out)
    protocol = replace(REFERENCE if reference else OURS, native=native and not reference)
    if voxels == "grid":
        protocol = replace(protocol, whole_grid=True)
    with progress("Evaluating", sum(case.split != "train" for case in cases)) as advance:
        table = evaluate_cases(
            detector, cases, output, sets=sets or None, scores=scores, protocol=protocol, seed=seed,
            progress=advance.case, stage=advance.stage, figures=True, maps=maps, ranks=ranks,
        )  # fmt: skip
    if not ranks.first:
        return
    if as_json:
        print((output / "summary.json").read_text(encoding="utf-8"), end="")
    else:
        print(headline(table))
        print(f"Every scan: {output / 'cases.csv'}; intervals and more: {output / 'summary.html'}")
    exit_by_failures(len(failures(table)), len(table.drop_duplicates(["set", "case", "split"])))


def _fold_for(model: str, trained: int | None, wanted: int | None, data_dir: Path) -> int:
    """Return the fold to evaluate on. Any fold but the model's would hold scans that it was trained on.

    Raises:
        InputError: The data have folds, and ``wanted`` is not the fold that the model was ``trained`` on.
    """
    if wanted is None or trained in (None, wanted):
        return wanted or trained or 0
    if data_dir.suffix.lower() != ".csv" and paper_folds(data_dir):
        fault = f"was trained on fold {trained}, not on fold {wanted}, which may validate on its training scans"
        raise InputError(model, fault, "Leave out --fold, or give the model of that fold")
    return wanted
