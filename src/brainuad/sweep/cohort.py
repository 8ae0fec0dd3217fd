"""A sweep over a cohort: which cases, and what is written of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from brainuad._version import __version__
from brainuad.data.cohort import Case
from brainuad.detector import SCORE, Detector
from brainuad.errors import InputError
from brainuad.evaluate.scorer import CASE_ERRORS
from brainuad.files import write_json, write_text
from brainuad.scoring.ensembles import LEARNT
from brainuad.sweep.run import Ablations, Row, Sweep

NO_ABLATIONS = Ablations()


def run_sweep(
    detector: Detector,
    cases: Sequence[Case],
    output: str | Path,
    *,
    sigmas: Sequence[float],
    ensembles: Sequence[str] = ("default",),
    ablations: Ablations = NO_ABLATIONS,
    split: str = "test",
    sets: Sequence[str] | None = None,
    report: Callable[[Case, str], None] = lambda case, message: None,
) -> tuple[pd.DataFrame, list[str]]:
    """Sweep over widths and write ``sweep.csv``, ``summary.csv``, ``summary.md``, ``sweep.png`` and ``sweep.json``.

    Args:
        detector: The model, on its device.
        cases: Annotated cases of ``split`` are swept; annotated validation cases teach the weights of "learnt", healthy
            ones what intensities are usual where. Scans of the person who is measured teach nothing.
        output: Folder of the results; a rerun continues there.
        sigmas: Widths in voxels.
        ensembles: See ``brainuad.scoring.ensembles.ENSEMBLES``.
        ablations: What else to vary.
        split: "test" or "val".
        sets: Data sets to sweep, all by default. Validation cases of others still teach.
        report: Called after each case with it and why it failed, "" where it did not.

    Returns:
        One row a case and map, and a message for each case that failed.

    Raises:
        InputError: The model makes no reconstruction, there is no annotated case, nothing to learn from, or the folder
            cannot be written to.
    """
    from brainuad.sweep.page import draw, page

    detector.check_makes(SCORE)
    annotated = [case for case in cases if case.split == split and case.lesion is not None]
    chosen = [case for case in annotated if sets is None or case.dataset in sets]
    if not chosen:
        raise InputError("cases", f"hold no {split} case with a drawn lesion", "A sweep needs them")
    output = Path(output)
    healthy = [case for case in cases if case.split == "val" and case.healthy]
    teachers = [case for case in cases if case.split == "val" and case.lesion is not None]
    sweep = Sweep(detector, tuple(sigmas), tuple(ensembles), ablations, output, healthy, teachers)
    for _ in sweep.sources():
        pass  # a setting that the model does not have ends the run
    learnt = sweep.learn() if LEARNT in ensembles else {"weights": [], "cases": []}
    rows: list[Row] = []
    failed: list[str] = []
    for case in chosen:
        message = ""
        try:
            place = {"set": case.dataset, "case": case.subject, "split": split}
            rows += [place | row for row in sweep.case_rows(case)]
        except CASE_ERRORS as error:
            message = (
                str(error)
                if isinstance(error, InputError)
                else f"{case.image}: {' '.join(str(error).split())}"
            )
            failed.append(message)
        report(case, message)
    table = pd.DataFrame(rows)
    if rows:
        summary, text = page(table, sweep.widths, failed)
        write_text(output / "sweep.csv", table.to_csv(index=False))
        write_text(output / "summary.csv", summary.to_csv(index=False))
        write_text(output / "summary.md", text)
        draw(summary, output / "sweep.png")
    about = {
        "version": __version__,
        "model": {"name": detector.name, "fingerprint": detector.fingerprint},
        "settings": asdict(detector.model_config),
        "sigmas": list(sigmas),
        "ensembles": list(ensembles),
        "ablations": asdict(ablations),
        "split": split,
        "learnt": {
            "weights": dict(zip(map(str, sweep.widths), learnt["weights"], strict=False)),
            "on": learnt["cases"],
            "without": "scans of the person who is measured",
        },
        "failed": failed,
    }
    write_json(output / "sweep.json", about)
    return table, failed
