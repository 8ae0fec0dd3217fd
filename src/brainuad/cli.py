"""The command line. A command parses, makes one call and prints; what is slow to import, it imports itself.

Results go to stdout, progress and warnings to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 some cases
failed, 130 interrupted.
"""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

import typer

from brainuad._version import __version__
from brainuad.console import (
    FAILED,
    Commands,
    exit_by_failures,
    logger,
    print_rows,
    progress,
    report_bug,
    set_verbosity,
)
from brainuad.data.cohort import PATHOLOGY_SETS, leak_free, paper_folds, read_cases
from brainuad.data.raw import DATASETS, RawScan, raw_scans
from brainuad.errors import InputError

DEVICES = ("auto", "cpu", "cuda", "mps")  # as brainuad.detector has them, which is slow to import

app = typer.Typer(
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the program ``brainuad``."""
    sys.excepthook = report_bug
    typer.main.get_command(app)(prog_name="brainuad")


def _one_of(names: Collection[str]) -> dict[str, Any]:
    """Return the settings of an option that takes one of ``names``, or one device of several ("cuda:1")."""

    def check(value: str | None) -> str | None:
        if value is not None and re.sub(r"^cuda:\d+$", "cuda", value) not in names:
            raise typer.BadParameter(f"{value!r} is none of {', '.join(names)}")
        return value

    return {"callback": check, "metavar": "|".join(names)}


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"brainuad {__version__}")
        raise typer.Exit


@app.callback()
def brainuad(
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Tell more on stderr.")] = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress, no warnings.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error arose.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Where is this brain unlike a healthy one? Anomaly detection in brain MRI. Research use only."""
    set_verbosity(verbose, quiet)
    if debug:
        sys.excepthook = sys.__excepthook__


DataDir = Annotated[
    Path, typer.Argument(metavar="DATA_DIR", help="Folder in the paper's layout, or a manifest CSV.")
]
Output = Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Everything is written there.")]
Modality = Annotated[str, typer.Option(help="Which images to take.", **_one_of(PATHOLOGY_SETS))]
Seed = Annotated[int, typer.Option(min=0, metavar="N", help="Seeds all randomness.")]
Device = Annotated[str, typer.Option(help="Where to compute.", **_one_of(DEVICES))]
Jobs = Annotated[int, typer.Option(min=1, metavar="N", help="Processes.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command(short_help="Bring raw scans into the atlas and the paper's layout.")
def prepare(
    raw: Annotated[
        Path, typer.Argument(metavar="RAW", help="Folder of raw scans, or a CSV that lists them.")
    ],
    output: Output,
    dataset: Annotated[str, typer.Option(help="How RAW is laid out.", **_one_of(DATASETS))],
    modality: Modality = "t1",
    spacing: Annotated[str, typer.Option(help="Voxel size in mm.", **_one_of(("1", "2")))] = "1",
    jobs: Jobs = 1,
    seed: Seed = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the scans and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Bring raw scans into the atlas and the paper's layout. A rerun skips what is done."""
    scans = raw_scans(raw, dataset, modality)
    if dry_run:
        print_rows([_scan_row(scan) for scan in scans], as_json)
        return
    from brainuad.prepare import Preparation, prepare_cohort

    rows: list[dict[str, Any]] = []
    with progress("Preparing", len(scans)) as advance:

        def report(row: dict[str, Any]) -> None:
            rows.append(row)
            advance(f"{row['status']}: {row['subject']}: {row['message']}" if row["message"] else "")

        prepare_cohort(scans, output, Preparation(float(spacing), seed), jobs=jobs, report=report)
    if as_json:
        print_rows(sorted(rows, key=lambda row: str(row["subject"])), as_json)
    else:
        counts = Counter(row["status"] for row in rows)
        print(", ".join(f"{counts[status]} {status}" for status in ("prepared", "skipped", "failed")))
        print(f"Every scan: {output / 'prepare.csv'}")
    exit_by_failures([row["status"] == "failed" for row in rows])


def _scan_row(scan: RawScan) -> dict[str, Any]:
    row = {"subject": scan.subject, "dataset": scan.dataset, "split": scan.split}
    files = {"image": ", ".join(map(str, scan.images.values())), "mask": scan.mask, "lesion": scan.lesion}
    return row | {name: str(path or "") for name, path in files.items()}


@app.command(short_help="Look for missing, damaged, duplicated and leaking scans.")
def check(
    data_dir: DataDir,
    modality: Modality = "t1",
    fold: Annotated[int | None, typer.Option(min=0, metavar="N", help="Only this fold.")] = None,
    jobs: Jobs = 1,
    as_json: Json = False,
) -> None:
    """Look for missing, damaged, duplicated and leaking scans. Exits with 1 if there are errors."""
    from brainuad.data.check import check_data_dir

    with progress("Checking", None) as advance:

        def report(done: int, total: int) -> None:
            advance(total=total)

        problems = check_data_dir(data_dir, modality, fold, num_workers=jobs, progress=report)
    errors = sum(problem.severity == "error" for problem in problems)
    if as_json:
        print(json.dumps([vars(problem) for problem in problems], indent=2))
    else:
        for problem in problems:
            print(problem)
        print(f"{errors} errors, {len(problems) - errors} warnings")
    if errors:
        raise typer.Exit(FAILED)


@app.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
    short_help="Train fold by fold, then evaluate; its --help lists the settings.",
)
def train(ctx: typer.Context) -> None:
    """Train fold by fold, then evaluate."""
    from brainuad.experiment import main as run_experiment

    raise typer.Exit(run_experiment(ctx.args))


@app.command(short_help="Measure a model on test scans.")
def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Name of a shipped model, or folder of a model or run.")
    ],
    data_dir: DataDir,
    output: Output,
    sets: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Data set, all by default; repeat, or use commas."),
    ] = None,
    scores: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Score, ssim_ensemble by default; repeat, or use commas."),
    ] = None,
    modality: Annotated[
        str | None,
        typer.Option(help="Which images the model must be for.", **_one_of(PATHOLOGY_SETS)),
    ] = None,
    fold: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Cross-validation fold, the model's by default."),
    ] = None,
    reference: Annotated[
        bool, typer.Option("--reference", help="Measure as the paper's release does.")
    ] = False,
    device: Device = "auto",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure a model on test scans; thresholds come from validation scans. A rerun skips what is done."""
    from brainuad.detector import SCORE, load_model
    from brainuad.evaluate import evaluate_cases, headline
    from brainuad.registry import SCORES
    from brainuad.runs import find_model

    wanted_scores, wanted_sets = _listed(scores) or [SCORE], _listed(sets)
    _known("--scores", wanted_scores, list(SCORES))
    detector = load_model(find_model(Path(model), fold or 0) if Path(model).is_dir() else model, device)
    if modality not in (None, detector.modality):
        fault = f"was trained on {detector.modality} images, not on {modality}"
        raise InputError(model, fault, f"Leave out --modality, or give a model of {modality}")
    fold = _fold_for(model, detector.provenance.get("fold"), fold, data_dir)
    listed = read_cases(data_dir, detector.modality, fold, training=False)
    _known("--sets", wanted_sets or [], list(dict.fromkeys(case.dataset for case in listed)))
    cases = listed if reference else leak_free(listed)
    if len(cases) < len(listed):
        left_out = len(listed) - len(cases)
        logger.warning("left out %d rows: subjects in two splits, or images listed twice", left_out)
    with progress("Evaluating", sum(case.split != "train" for case in cases)) as advance:

        def report(case: Any, rows: list[dict[str, Any]]) -> None:
            message = rows[0]["message"]
            advance(f"{rows[0]['status']}: {case.dataset} {case.subject}: {message}" if message else "")

        table = evaluate_cases(
            detector, cases, output, sets=wanted_sets, scores=wanted_scores, reference=reference, seed=seed,
            progress=report,
        )  # fmt: skip
    if as_json:
        print((output / "summary.json").read_text(encoding="utf-8"), end="")
    else:
        print(headline(table))
        print(f"Every scan: {output / 'cases.csv'}; intervals: {output / 'summary.csv'}")
    exit_by_failures((table["status"] == "failed").tolist())


def _fold_for(model: str, trained: int | None, wanted: int | None, data_dir: Path) -> int:
    """Return the fold to evaluate on: another than the model's would hold scans it was trained on.

    Raises:
        InputError: The data has folds, and ``wanted`` is none that the model was ``trained`` on.
    """
    if wanted is None:
        return trained or 0
    if trained in (None, wanted):
        return wanted
    if data_dir.suffix.lower() != ".csv" and paper_folds(data_dir):
        fault = (
            f"was trained on fold {trained}, not on fold {wanted}, which may validate on its training scans"
        )
        raise InputError(model, fault, "Leave out --fold, or give the model of that fold")
    return wanted


def _known(option: str, names: list[str], known: list[str]) -> None:
    """Refuse names that are not known as wrong usage."""
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(known)}"
            raise typer.BadParameter(f"{name!r} is unknown. {hint}", param_hint=option)


def _listed(values: list[str] | None) -> list[str] | None:
    """Return names that were given one by one or separated by commas."""
    return [name for value in values for name in value.split(",")] if values else None


@app.command(short_help="Score the scans that come with brainuad.")
def demo(output: Output = Path("demo"), device: Device = "auto", as_json: Json = False) -> None:
    """Score the scans that come with brainuad, print a table, draw every scan."""
    from brainuad.demo import run_demo

    with progress("Demo", None) as advance:

        def report(step: str, done: int, total: int) -> None:
            advance(total=total, what=step.capitalize())

        made = run_demo(output, device=device, report=report)
    if as_json:
        tables = {"scores": made.table, "groups": made.groups}
        found = {
            name: json.loads(table.reset_index().to_json(orient="records")) for name, table in tables.items()
        }
        files = {"results": str(made.results), "pictures": [str(path) for path in made.pictures]}
        print(json.dumps(found | files, indent=2))
        return
    print(made.groups.to_string(float_format="{:.4f}".format, na_rep="-"), end="\n\n")
    print(made.table.to_string(float_format="{:.4f}".format), end="\n\n")
    print(f"Table: {made.results}")
    print(f"Open {made.pictures[-1]}; every other scan has its picture beside it.")
