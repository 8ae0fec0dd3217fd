"""Simulated cohorts: healthy scans with added lesions, and a manifest for training and evaluation."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import pandas as pd

from brainuad._version import __version__
from brainuad.data.cohort import MANIFEST_COLUMNS, Case
from brainuad.data.tables import check_file_name
from brainuad.errors import InputError
from brainuad.files import write_json, write_text
from brainuad.processes import process_pool, run_each
from brainuad.simulate.subject import Row, Simulation, simulate_subject

COLUMNS = (*MANIFEST_COLUMNS, "dataset", "age", "kind", "contrast", "volume_ml", "lesions")


def shipped_outlines() -> AbstractContextManager[Path]:
    """Yield the folder of the stroke outlines that come with the package."""
    return as_file(files("brainuad.assets") / "strokes")


def simulate_cohort(
    cases: Sequence[Case],
    output: str | Path,
    settings: Simulation,
    *,
    outlines: str | Path,
    jobs: int = 1,
    report: Callable[[Row], None] = lambda row: None,
) -> pd.DataFrame:
    """Put lesions of every kind into healthy scans. Finished subjects are skipped, failed ones recorded.

    Training subjects get no lesions; they are only useful for T2 and FLAIR, whose healthy scans are simulated, too.
    Writes 8-bit images (0 to the 99.8th percentile of the healthy brain), brain masks, ground truths and one JSON
    sidecar per subject, all in ``output`` itself; then ``manifest.csv`` and ``simulation.json`` of this run.

    Args:
        cases: Healthy scans in atlas space, as ``brainuad prepare`` writes them, with MUSE labels beside them.
        output: Folder; created where missing.
        settings: Of the lesions.
        outlines: Folder of stroke outlines, NIfTI in MNI152 space. Each is used for one subject at most.
        jobs: Number of processes.
        report: Called with each subject's row as it is done.

    Returns:
        One row a subject: subject, split, status ("simulated", "skipped" or "failed"), scans, seconds, message.

    Raises:
        InputError: There is no healthy scan, or there are no outlines; ``output`` holds the healthy scans; or two
            scans would have the same files.
    """
    cases = sorted((case for case in cases if case.healthy), key=lambda case: case.subject)
    if not cases:
        raise InputError(output, "no healthy scan was found to put lesions into", "Give scans of label 0")
    folder = Path(output)
    _check_files(cases, folder, settings)
    patients = [case.subject for case in cases if case.split != "train"]
    offered = _deal(Path(outlines), patients, settings)
    results: list[tuple[Row, Row]] = []

    def done(result: tuple[Row, Row]) -> None:
        results.append(result)
        report(result[0])

    with process_pool(jobs) as pool:
        arguments = [(case, folder, settings, offered.get(case.subject, [])) for case in cases]
        run_each(pool, simulate_subject, arguments, done)
    results.sort(key=lambda result: str(result[0]["subject"]))
    rows = [row for _, record in results for row in record.get("rows", [])]
    if rows:
        table = pd.DataFrame(rows, columns=list(COLUMNS))
        write_text(folder / "manifest.csv", table.to_csv(index=False, lineterminator="\n"))
    parameters = {summary["subject"]: record.get("parameters", {}) for summary, record in results}
    about = {"brainuad": __version__, "simulated": True, "settings": asdict(settings)}
    write_json(folder / "simulation.json", {**about, "subjects": parameters})
    return pd.DataFrame([summary for summary, _ in results])


def _check_files(cases: Sequence[Case], output: Path, settings: Simulation) -> None:
    """Refuse to overwrite an input or another scan's output, or to write outside of the folder."""
    written: dict[str, Case] = {}
    for case in cases:
        check_file_name(case.subject, "subject", str(case.image))
        if output.resolve() in (case.image.resolve().parent, case.mask.resolve().parent):
            fault = f"lies in the output folder {output}, where it would be written over"
            raise InputError(case.image, fault, "Choose another folder")
        for stem in (case.subject, *(f"{case.subject}_{kind}" for kind in settings.kinds)):
            other = written.setdefault(stem.casefold(), case)
            if other is not case:
                fault = f"would have the files of {other.image}, {stem}_{settings.modality}.nii.gz"
                raise InputError(case.image, fault, "Give every scan a subject name of its own")


def _deal(outlines: Path, subjects: Sequence[str], settings: Simulation) -> dict[str, list[Path]]:
    """Deal shuffled outlines to the subjects like cards; each subject tries its outlines in order."""
    if "stroke" not in settings.kinds:
        return {}
    paths = sorted(path for path in outlines.glob("*.nii*") if path.is_file())
    if len(paths) < len(subjects):
        fault = f"holds {len(paths)} outlines (*.nii.gz) for {len(subjects)} subjects"
        raise InputError(outlines, fault, "Give more, or leave out the kind stroke")
    order = np.random.default_rng([settings.seed, zlib.crc32(b"outlines")]).permutation(len(paths))
    return {subject: [paths[i] for i in order[place :: len(subjects)]] for place, subject in enumerate(subjects)}
