"""The zoo: every registered method trained for the same time, evaluated on the same scans, and shown on one page.

Trainings are kept in ``models/``, evaluations in ``evaluations/``. A rerun skips finished ones, and an unfinished
training gets the rest of its time.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from importlib.resources import files
from pathlib import Path

from brainuad.compare.differences import is_simulated
from brainuad.config import ExperimentConfig, differences, flat_settings, parse_time
from brainuad.data.cohort import Case
from brainuad.data.loading import PreparedCase, load_case
from brainuad.data.packed import is_packed
from brainuad.detector import Detector
from brainuad.errors import InputError
from brainuad.experiment.fold import fold_cases
from brainuad.experiment.overrides import read_overrides
from brainuad.experiment.run import load_trained, train_fold
from brainuad.experiment.settings import CONFIG_MODULE, check_settings
from brainuad.files import key_of, read_json, write_json, write_text
from brainuad.study import OURS, evaluate_cases, failures
from brainuad.study.figures import file_name
from brainuad.study.html_page import write_page
from brainuad.study.scorer import CASE_ERRORS
from brainuad.study.zoo_page import Entry, draw_set, page, shown_scores

logger = logging.getLogger(__name__)

PROTOCOL = replace(OURS, native=False)
# of the other models: lite-<name>
PRESETS = {"ddpm": ["experiment=lite"], "restoration": ["experiment=restoration"]}
MAY_CHANGE = (  # settings that may differ between a run and its rerun
    "log_dir",
    "callbacks.",
    "logger.",
    "trainer.accelerator",
    "datamodule.cfg.cache_dir",
    "datamodule.cfg.num_workers",
)


def run_zoo(
    data_dir: str | Path,
    output: str | Path,
    *,
    models: Sequence[str],
    seeds: Sequence[int] = (1,),
    budget: int,
    settings: Sequence[str] = (),
) -> list[bool]:
    """Train and evaluate models, and write ``zoo.md``, ``zoo.html`` and a picture of each data set with lesions.

    Args:
        data_dir: The paper's layout or a manifest CSV, with training, validation and test scans.
        output: Folder of all results; a rerun continues there.
        models: Names of the registry.
        seeds: Each model is trained once with each seed.
        budget: Seconds of wall-clock time of each training.
        settings: Settings of all trainings, as for ``brainuad train``: "datamodule.cfg.mode=t2".

    Returns:
        For each training, whether it or the evaluation of any scan failed.

    Raises:
        InputError: A setting or the data cannot be used, or the folder cannot be written to.
    """
    output = Path(output)
    if is_packed(data_dir):
        raise InputError(data_dir, "is packed and holds no test scans", "Give the data that it was packed from")
    trainings = [
        (name, zoo_settings(name, seed, data_dir, output / "models", budget, settings))
        for seed in seeds
        for name in models
    ]
    fold = trainings[0][1].folds()[0]
    cases = fold_cases(trainings[0][1], fold)
    annotated = [case for case in cases if case.split == "test" and case.lesion is not None]
    if not annotated:
        raise InputError(data_dir, "holds no test scan with a drawn lesion", "Add some, with split test")
    entries: list[Entry] = []
    shown: dict[str, tuple[Entry, Detector]] = {}
    failed: list[str] = []
    for name, config in trainings:
        logger.info("%s", config.name)
        try:
            model = _train(config, cases, output / "models" / config.name, fold)
            folder = output / "evaluations" / config.name
            entry, detector = _evaluate(name, config, model, cases, folder, baselines=not entries)
        except CASE_ERRORS as error:
            failed.append(f"{config.name}: {' '.join(str(error).split()) or type(error).__name__}")
            logger.error("%s", failed[-1])
            continue
        entries.append(entry)
        shown.setdefault(name, (entry, detector))
    sets = sorted({case.dataset for case in annotated}, key=lambda name: (is_simulated(name), name))
    pictures = []
    for dataset in sets:
        path = output / "figures" / f"{file_name(dataset)}.png"
        if draw_set(dataset, annotated, list(shown.values()), path):
            pictures.append(path)
    headings = {name: f"{'Simulated' if is_simulated(name) else 'Real'} lesions: {name}" for name in sets}
    text = page(entries, headings, budget=f"{timedelta(seconds=budget)} (h:mm:ss)", failed=failed)
    write_text(output / "zoo.md", text)
    write_page(output / "zoo.html", text, pictures)
    return [True] * len(failed) + [len(failures(entry.table)) > 0 for entry in entries]


def zoo_settings(
    name: str, seed: int, data_dir: str | Path, models: Path, budget: int, settings: Sequence[str] = ()
) -> ExperimentConfig:
    """Return the experiment of a model: its preset for machines without a GPU, where it has one.

    ``models`` is the folder of all trainings; for the other arguments see `run_zoo`.

    Raises:
        InputError: A setting does not exist, or cannot be used.
    """
    small = (files(CONFIG_MODULE) / "model" / f"lite-{name}.yaml").is_file()
    preset = PRESETS.get(name, ["experiment=lite", f"model=lite-{name}" if small else f"model={name}"])
    config = read_overrides([*preset, *settings])
    config.name, config.seed = f"{name}-seed{seed}", seed
    config.data_dir, config.log_dir = str(Path(data_dir).resolve()), str(models)
    config.trainer.max_time, config.resume = clock(budget), True
    check_settings(config)
    return config


def clock(seconds: float) -> str:
    """Return a time in the format of ``trainer.max_time``, at least one second."""
    minutes, second = divmod(max(1, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    day, hour = divmod(hours, 24)
    return f"{day:02}:{hour:02}:{minute:02}:{second:02}"


def _train(config: ExperimentConfig, cases: Sequence[Case], folder: Path, fold: int) -> Path:
    """Train a model for the rest of its time, unless it is trained already, and return its folder.

    Raises:
        InputError: It was trained with other settings, or training cannot continue.
    """
    from brainuad.train import seconds_used

    note = folder / "settings.json"
    wanted = {"cases": key_of([str(case) for case in cases if case.split != "test"]), **flat_settings(config)}
    saved = read_json(note) if note.is_file() else wanted
    if differing := differences(saved, wanted, sorted(k for k in {*saved, *wanted} if not k.startswith(MAY_CHANGE))):
        fault = f"was trained with other settings ({differing})"
        raise InputError(folder, fault, "Repeat them, or choose another folder")
    write_json(note, wanted)
    if (folder / "training.json").is_file():
        return folder / "model"
    left = copy.deepcopy(config)
    left.trainer.max_time = clock(parse_time(config.trainer.max_time) - seconds_used(folder))
    trained = train_fold(left, cases, folder, fold)
    if trained is None:
        raise InputError("trainer.devices", "several train together", "Give one")
    return trained


def _evaluate(
    name: str, config: ExperimentConfig, model: Path, cases: Sequence[Case], folder: Path, *, baselines: bool
) -> tuple[Entry, Detector]:
    """Finish the evaluation of a trained model on all test sets, and measure its costs."""
    detector = replace(load_trained(model, config), name=config.name)
    scores = shown_scores(detector)
    table = evaluate_cases(
        detector, cases, folder, scores=scores, baselines=baselines, protocol=PROTOCOL, seed=config.seed
    )
    if not (folder / "costs.json").is_file():
        write_json(folder / "costs.json", _costs(detector, model.parent, scores, cases, config.seed))
    costs = read_json(folder / "costs.json")
    return Entry(name, config.seed, scores, table, costs, str(detector.device)), detector


def _costs(
    detector: Detector, training: Path, scores: Sequence[str], cases: Sequence[Case], seed: int
) -> dict[str, float]:
    """Return parameters, steps and seconds of the training, and seconds per test scan, the faster of two runs."""
    from brainuad.train import seconds_used

    done = read_json(training / "training.json")
    scan, seconds = _first_loaded([case for case in cases if case.split == "test"], detector), []
    for _ in range(2):
        started = time.perf_counter()
        detector.maps(scan.image, scan.mask, scores, seed)
        seconds.append(time.perf_counter() - started)
    return {
        "parameters": sum(weight.numel() for weight in detector.model.parameters()),
        "steps": done["steps"],
        "training_seconds": max(seconds_used(training), done["seconds"]),
        "scan_seconds": min(seconds),
    }


def _first_loaded(cases: Sequence[Case], detector: Detector) -> PreparedCase:
    for case in cases:
        with suppress(InputError):
            return load_case(case, detector.data_config)
    raise InputError("test scans", "cannot be used, not one of them", "See what `brainuad check` says of the data")
