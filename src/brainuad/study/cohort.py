"""Evaluate a detector on a cohort: choose cases and scores, measure them, write the results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd

from brainuad.config import has_setting
from brainuad.data.bias import warn_of_other_bias_levels
from brainuad.data.cohort import Case
from brainuad.data.leaks import find_leaks, scans_of_others
from brainuad.data.loading import PreparedCase
from brainuad.detector import Detector, Maps
from brainuad.errors import InputError
from brainuad.files import atomic_path, check_writable, write_json, write_text
from brainuad.scoring.health import HealthyMoments
from brainuad.scoring.names import INTENSITY_ATLAS, base_of
from brainuad.scoring.rarity import RARITY
from brainuad.study.html_page import write_page
from brainuad.study.loader import Loader
from brainuad.study.pages import latex_tables, markdown
from brainuad.study.progress import without_nan
from brainuad.study.protocol import BASELINES, OURS, Protocol
from brainuad.study.ranks import Ranks
from brainuad.study.run import Run
from brainuad.study.scorer import MIN_OTHERS, Scorer
from brainuad.study.summary import Subjects, curves, summarise_all
from brainuad.study.tables import Pools, Rows, spelled_out

ALONE = Ranks()


def evaluate_cases(
    detector: Detector,
    cases: Sequence[Case],
    output: str | Path,
    *,
    sets: Sequence[str] | None = None,
    scores: Sequence[str] | None = None,
    baselines: bool = True,
    protocol: Protocol = OURS,
    seed: int = 0,
    postprocess: bool = True,
    progress: Callable[[Case, str], None] = lambda case, message: None,
    on_scored: Callable[[PreparedCase, Maps], None] = lambda prepared, maps: None,
    stage: Callable[[str], None] = lambda name: None,
    figures: bool = False,
    maps: bool = False,
    ranks: Ranks = ALONE,
) -> pd.DataFrame:
    """Evaluate a detector and write ``cases.csv``, ``summary.csv``, ``summary.json``, ``summary.md`` and LaTeX.

    Thresholds come from validation scans alone: false-positive thresholds from all healthy ones, and each set's
    threshold from the best pooled Dice on its annotated ones. Without such scans nothing is measured at these
    thresholds, and ``summary.json`` says why. Validation scans have rows, too, without measures that were fitted to
    them.

    Finished scores of a scan are kept in ``progress.jsonl`` and ``histograms/``: a rerun with the same model, scans
    and settings skips them.

    Args:
        detector: The model, on its device.
        cases: Validation and test cases; training cases are left out.
        output: Folder of the results.
        sets: Data sets to evaluate, all by default. Healthy validation scans of other sets still set thresholds.
        scores: Scores of the registry, "model" for the model's own map, and those relative to health: "<name>_z".
            By default the model's default.
        baselines: Add scores that need no model.
        protocol: The rules; ``REFERENCE`` are those of the published release.
        seed: Seed of the noise. A case's noise does not depend on the other cases.
        postprocess: Erode and median-filter maps, and drop small components from predictions.
        progress: Called after each case with the case and its error message, "" if it succeeded.
        on_scored: Called with each newly scored case and its maps, for instance to draw them.
        stage: Called with subject and step ("IXI067: reconstruct") as one begins.
        figures: Draw figures, and each set's best, median and worst case.
        maps: Write the post-processed maps of every measured scan as NIfTI, ``maps/SET/SUBJECT_SCORE_KEY.nii.gz``, on
            the model's grid and in the scan's space. A scan that was measured before without them is scored again.
        ranks: The processes that divide the cases, each calling this with the same arguments. The first writes the
            results, which equal those of a single process.

    Returns:
        The contents of ``cases.csv``: one row a case, score, space, threshold and measure; empty in ranks other than
        the first.

    Raises:
        InputError: A set or score is unknown, the model cannot give a score, there is no test case, there are too few
            healthy scans to compare with, or the folder cannot be written to.
    """
    if protocol.shared_noise and has_setting(detector.model_config, "shared_noise"):
        detector = detector.with_settings(shared_noise=True)
    scores = list(scores) if scores else [detector.scores.default]
    for name in scores:
        # rarity always refers to the healthy scans of the calibration
        (detector.scores.check if name == RARITY else detector.scores.check_made)(name)
    chosen = _choose(cases, sets)
    if ranks.first:
        warn_of_other_bias_levels(chosen, detector.data_config.bias_levels)
    healthy = [case for case in cases if case.split == "val" and case.healthy]
    scorer = Scorer(detector, seed, postprocess=postprocess, stage=stage)
    names, notes = scores_to_compute(
        scores, baselines, detector.health, lambda: ranks.gathered(loadable(ranks.own_part(healthy), scorer.load))
    )
    check_writable(output)
    run = Run(scorer, names, protocol, Path(output), healthy, progress, on_scored, ranks, maps)
    run.evaluate(chosen)
    table, run.rows = run.rows.table(), Rows()  # not both in memory
    if not ranks.first:
        return spelled_out(table)
    about = run.about() | {"notes": notes, "leaks": [str(leak) for leak in find_leaks(cases)]}
    summary, drawn = _write_tables(Path(output), table, about, run.pools, run.subjects)
    if figures:
        from brainuad.study.figures import draw_figures

        pictures = draw_figures(Path(output) / "figures", table, drawn, summary)
        pictures += run.draw_montages(table, summary)
        text = (Path(output) / "summary.md").read_text(encoding="utf-8")
        write_page(Path(output) / "summary.html", text, pictures)
    return spelled_out(table)


def _write_tables(
    output: Path, table: pd.DataFrame, about: Mapping[str, Any], pools: Pools, subjects: Subjects
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write ``cases.csv``, ``summary.csv``, ``curves.json``, the pages, and, last, ``summary.json``.

    Returns:
        The contents of ``summary.json`` and ``curves.json``.
    """
    with atomic_path(output / "cases.csv") as temporary:
        table.to_csv(temporary, index=False)
    summary, figures = summarise_all(table, about["scores"], pools, subjects)
    write_text(output / "summary.csv", summary.to_csv(index=False))
    drawn = without_nan(curves(pools))
    write_json(output / "curves.json", drawn)
    facts = without_nan({**about, **figures})
    write_text(output / "summary.md", markdown(summary, facts))
    for name, text in latex_tables(summary, facts).items():
        write_text(output / "latex" / f"{name}.tex", text)
    write_json(output / "summary.json", facts)
    return facts, drawn


def _choose(cases: Sequence[Case], sets: Sequence[str] | None) -> list[Case]:
    known = list(dict.fromkeys(case.dataset for case in cases))
    for name in sets or ():
        if name not in known:
            raise InputError(name, "is none of the data sets", f"There are: {', '.join(known) or 'none'}")
    chosen = [c for c in cases if c.split in ("val", "test") and (sets is None or c.dataset in sets)]
    if not any(case.split == "test" for case in chosen):
        raise InputError("cases", "hold no test case", "Check the split files and the chosen data sets")
    return chosen


def scores_to_compute(
    scores: Sequence[str], baselines: bool, health: HealthyMoments | None, usable: Callable[[], Sequence[Case]]
) -> tuple[tuple[str, ...], list[str]]:
    """Return the scores to compute, baselines first, and notes on those relative to health.

    ``usable`` returns the healthy validation scans that can be loaded.
    """
    names = list(dict.fromkeys([*(BASELINES if baselines else ()), *scores]))
    relative = [name for name in names if base_of(name) is not None]  # raises on unknown names
    if not relative:
        return tuple(names), []
    scans = usable()
    others = scans_of_others(scans)
    if others >= MIN_OTHERS:
        return tuple(names), []
    if health is not None and all(base_of(name) in health.moments for name in relative):
        note = f"compared with the {health.scans} healthy scans that the model was calibrated on"
        return tuple(names), [f"{', '.join(relative)}: {note}"]
    why = f"needs {MIN_OTHERS + 1} healthy validation scans to compare with, there are {len(scans)}"
    if len(scans) > MIN_OTHERS:
        why = f"needs {MIN_OTHERS} healthy validation scans of others to compare each with, for one there are {others}"
    for name in relative:
        if name in scores:
            raise InputError(name, why, "Add healthy scans with split val, or choose other scores")
    return tuple(name for name in names if name not in relative), [f"{INTENSITY_ATLAS} {why}"]


def loadable(cases: Sequence[Case], load: Loader) -> list[Case]:
    """Return the cases that can be loaded."""
    usable = []
    for case in load.in_turn(cases):
        with suppress(InputError):
            load(case)
            usable.append(case)
    return usable
