"""Run an experiment: train fold by fold, then evaluate every test set of the modality.

Runs are written to ``LOG_DIR/<name>/<mode>/seed<seed>/<time>/fold<k>``. A new run never touches an old one;
``resume=True`` continues the newest run of that name, mode and seed with the same settings.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from brainuad.config import ExperimentConfig, untrained_settings
from brainuad.console import progress, say, show_messages
from brainuad.data.cohort import Case
from brainuad.data.packed import is_packed
from brainuad.errors import InputError
from brainuad.experiment.environment import path_overrides
from brainuad.experiment.fold import fold_cases, training_volumes
from brainuad.experiment.overrides import FILE_FLAGS, UnknownName, check_names, read_overrides, split_arguments
from brainuad.experiment.runs import newest_run, with_saved_settings
from brainuad.experiment.settings import CONFIG_MODULE, check_settings, to_experiment
from brainuad.files import sha256
from brainuad.modelfile import find_model
from brainuad.modelimport import import_checkpoint

if TYPE_CHECKING:
    from brainuad.detector import Detector

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str], env_file: str | Path = "pc_environment.env") -> int:
    """Run ``brainuad train``: overrides of settings, Hydra's flags, ``--resume`` and ``--allow-leaks``.

    Args:
        arguments: The arguments after the command.
        env_file: File with DATA_DIR and LOG_DIR. It is overridden by the command line, and overrides the
            environment.

    Returns:
        0 done, 1 failed, 2 unknown name, 3 some test cases failed, 130 interrupted.
    """
    show_messages()
    flags, overrides = split_arguments(arguments)
    own_files = bool(FILE_FLAGS & {flag.split("=")[0] for flag in flags})
    asks = bool({"--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i"} & set(flags))
    try:
        if own_files or {"-m", "--multirun"} & set(flags):
            check_names(overrides, own_files=own_files)
        else:
            read_overrides(overrides)
        if not own_files:
            with suppress(InputError) if asks else nullcontext():
                overrides += path_overrides(overrides, Path(env_file))
        return _run_hydra([*flags, *overrides])
    except InputError as error:
        say(f"error: {error}")
        return 2 if isinstance(error, UnknownName) else 1
    except KeyboardInterrupt:
        say("interrupted. The same command with resume=True continues.")
        return 130


def _run_hydra(arguments: list[str]) -> int:
    """Let Hydra compose the settings and make the folder of each run. Return the exit code."""
    codes: list[int] = []

    def job(settings: DictConfig) -> None:
        try:
            config = to_experiment(settings)
            if config.resume:
                newest_run(config)  # raises the error that _run_folder could not raise
            typed = [word.split("=")[0].lstrip("+") for word in HydraConfig.get().overrides.task]
            failed = run(config, Path(HydraConfig.get().runtime.output_dir), typed)
            codes.append(3 if failed else 0)
        except (InputError, OSError) as error:  # a failed run does not stop the others of a multirun
            codes.append(1)
            say(f"error: {error if isinstance(error, InputError) else _of_disk(error)}")

    main_of = hydra.main(config_path=f"pkg://{CONFIG_MODULE}", config_name="config", version_base="1.3")
    try:
        with _as_program(arguments):
            main_of(job)()
    except SystemExit as stop:  # Hydra has printed why
        return 1 if stop.code else 0
    except (CompactHydraException, OmegaConfBaseException) as error:
        print(*filter(None, (error, error.__cause__)), sep="\n", file=sys.stderr)
        return 1
    except OSError as error:  # Hydra cannot write its files
        raise _of_disk(error) from error
    return 1 if 1 in codes else max(codes, default=0)


def _of_disk(error: OSError) -> InputError:
    return InputError(error.filename or "training", error.strerror or str(error), "Free space or choose another folder")


@contextmanager
def _as_program(arguments: list[str]) -> Iterator[None]:
    """Set ``sys.argv``, which Hydra reads, and from which Lightning starts one process per device.

    Hydra raises its errors meanwhile; otherwise it prints them with a traceback.
    """
    argv, full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = [__file__, *arguments], "1"
    try:
        yield
    finally:
        sys.argv = argv
        if full_error is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full_error


def run(config: ExperimentConfig, folder: Path, typed: Sequence[str] = ()) -> int:
    """Train and evaluate fold by fold, and print the run's folder to stdout.

    Args:
        config: The experiment.
        folder: The run's folder.
        typed: Names of the settings and groups that the user gave, and not a preset. With ``onlyEval`` only these
            replace the settings that a model was saved with.

    Returns:
        Number of cases that could not be evaluated.

    Raises:
        InputError: A setting, the data or a checkpoint cannot be used.
    """
    check_settings(config)
    if config.onlyEval and (idle := [name for name in typed if _trains_only(name)]):
        logger.warning("onlyEval=True trains nothing, so there is no effect of %s", ", ".join(idle))
    folds = config.folds()
    one_fold = Path(config.data_dir).suffix.lower() == ".csv" or is_packed(config.data_dir)
    one_model = config.onlyEval and not (Path(config.load_checkpoint) / f"fold{folds[0]}").is_dir()
    # a manifest has no folds, packed data have one, and a single model needs one evaluation
    if one_fold or one_model:
        folds = folds[:1]
    if not config.onlyEval:
        check_devices(config, len(folds))
    if config.onlyEval and Path(config.load_checkpoint).is_file():
        config = replace(config, load_checkpoint=str(imported(config, folder)))
    # read all folds before the first training, which may take days
    models = {fold: find_model(Path(config.load_checkpoint), fold) for fold in folds} if config.onlyEval else {}
    settings = {fold: with_saved_settings(config, model, typed) for fold, model in models.items()}
    cohorts = {fold: fold_cases(config, fold) for fold in folds}
    failed = 0
    longer = trains_longer(config, [folder / f"fold{fold}" for fold in folds])
    for fold, cases in cohorts.items():
        fold_folder = folder / f"fold{fold}"
        model = models.get(fold) or train_fold(config, cases, fold_folder, fold, longer=longer)
        if model is None:
            return 0
        failed += evaluate_fold(settings.get(fold, config), model, cases, fold_folder)
    evaluated = [fold for fold in folds if (folder / f"fold{fold}" / "evaluation" / "summary.csv").is_file()]
    if len(evaluated) > 1:
        from brainuad.study.folds import summarise_folds

        summarise_folds(folder, evaluated)
    if failed:
        print(f"{failed} cases failed; see evaluation/cases.csv in {folder}", file=sys.stderr)
    print(folder)
    return failed


def imported(config: ExperimentConfig, folder: Path) -> Path:
    """Return the folder of the model that ``load_checkpoint``, a checkpoint of the release, becomes below a run."""
    checkpoint = Path(config.load_checkpoint)
    model = folder / f"imported-{sha256(checkpoint)[:8]}"
    if not model.is_dir():
        import_checkpoint(checkpoint, model, modality=config.datamodule.cfg.mode)
    return model


def _trains_only(name: str) -> bool:
    """Return whether a setting or group affects training alone."""
    if name in ("trainer.accelerator", "trainer.precision"):
        return False
    training = ("trainer", "callbacks", "logger", "initial_weights", "resume", "allow_leaks")
    of_data = (f"datamodule.cfg.{setting}" for setting in ("lr", "batch_size", "aug_intensity"))
    return name.split(".")[0] in training or name in of_data


def check_devices(config: ExperimentConfig, folds: int) -> None:
    """Raise InputError for several folds on several devices.

    The helper processes end with the first fold, so the main process would wait for them in the second.
    """
    devices, accelerator = config.trainer.devices, config.trainer.accelerator
    count = 1  # Lightning refuses meaningless values
    if devices in ("auto", "-1", -1):
        count = 1 if accelerator in ("cpu", "mps") else torch.cuda.device_count()
    elif isinstance(devices, str) and "," in devices:
        count = len(devices.strip(",").split(","))
    elif isinstance(devices, list | tuple):
        count = len(devices)
    elif str(devices).isdigit():
        count = int(devices)
    if folds > 1 and count * config.trainer.num_nodes > 1:
        remedy = f"Run the folds one at a time: fold={config.folds()[0]}, and so on"
        raise InputError("trainer.devices", f"{folds} folds in one run need one device", remedy)


def trains_longer(config: ExperimentConfig, folders: Sequence[Path]) -> bool:
    """Return whether complete trainings get more time: those by the clock, when all folds are complete."""
    if not (config.resume and config.trainer.max_time) or config.onlyEval:
        return False
    from brainuad.train import is_complete

    return all(is_complete(config, folder) for folder in folders)


def train_fold(
    config: ExperimentConfig, cases: Sequence[Case], folder: Path, fold: int, *, longer: bool = False
) -> Path | None:
    """Train one model, unless it is complete already, and return its folder.

    Args:
        config: The experiment.
        cases: Cases of the fold.
        folder: Folder of the training.
        fold: Number of the fold.
        longer: Continue even if it is complete.

    Returns:
        The exported model's folder; None in a helper process of training on several devices.

    Raises:
        InputError: ``folder`` is not empty, and ``config.resume`` is off.
    """
    from brainuad.train import fit, is_complete, is_main_process

    if config.resume and is_complete(config, folder) and not longer:
        logger.info("%s is trained", folder)
        return folder / "model"
    if folder.exists() and not config.resume and is_main_process():
        raise InputError(folder, "exists", "Add resume=True to continue it, or choose another name=")
    train, val = training_volumes(config, cases)
    logger.info("Training on %d scans, validating on %d: %s", len(train), len(val), folder)
    model = fit(config, train, val, folder, fold=fold)
    return model if is_main_process() else None


def evaluate_fold(config: ExperimentConfig, model: Path, cases: Sequence[Case], folder: Path) -> int:
    """Evaluate a trained model on every test set of the modality; validation cases set the thresholds.

    Settings of reconstruction and score are those of ``model.cfg``.

    Returns:
        Number of failed cases; their rows in ``folder / "evaluation" / "cases.csv"`` give the reason.
    """
    from brainuad.study import OURS, REFERENCE, evaluate_cases, failures, headline

    if not any(case.split == "test" for case in cases):
        logger.warning("There are no test cases, so nothing is evaluated")
        return 0
    detector = load_trained(model, config)
    settings = {name: getattr(config.model.cfg, name) for name in untrained_settings(detector.model_config)}
    detector = detector.with_settings(**settings)  # raises on values that cannot be used
    with progress("Evaluating", sum(case.split != "train" for case in cases)) as advance:
        table = evaluate_cases(
            detector,
            cases,
            folder / "evaluation",
            protocol=REFERENCE if config.reference else OURS,
            seed=config.seed,
            progress=lambda case, message: advance(),
            figures=True,
        )
    logger.info("%s\nEvery scan and measure: %s", headline(table), folder / "evaluation")
    return len(failures(table))


def load_trained(model: Path, config: ExperimentConfig) -> Detector:
    """Return a trained model for its evaluation: with device, precision, cache and processes of its training."""
    from brainuad.detector import load_model

    accelerator = config.trainer.accelerator
    precision = "float32" if config.trainer.precision.startswith("32") else "auto"
    detector = load_model(model, "cuda" if accelerator == "gpu" else accelerator, precision)
    for name in ("cache_dir", "num_workers"):
        setattr(detector.data_config, name, getattr(config.datamodule.cfg, name))
    return detector


if __name__ == "__main__":  # Lightning starts further processes by this file
    sys.exit(main(sys.argv[1:]))
