"""One call that trains one model and leaves everything about it in one folder."""

from __future__ import annotations

import importlib.util
import itertools
import logging
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from hydra.utils import get_class
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from brainuad._version import __version__
from brainuad.config import ExperimentConfig, TrainerConfig, parse_time
from brainuad.devices import compile_networks
from brainuad.errors import InputError
from brainuad.files import read_json, write_json
from brainuad.modelfile import write_model
from brainuad.train.budget import Budget
from brainuad.train.callbacks import Epochs, Interrupted
from brainuad.train.checkpoint import AtomicCheckpointIO, check_resumable
from brainuad.train.module import Training
from brainuad.train.pictures import draw_curve
from brainuad.train.reports import MetricsTable, Progress
from brainuad.train.slices import TrainingVolumes

LENGTHS = ("max_epochs", "max_steps", "max_time")  # settings that say how long training takes


def resolve_precision(settings: TrainerConfig) -> Any:
    """Return Lightning's name of the precision; "auto" is bf16-mixed on CUDA that has it, else 32 bits."""
    if settings.precision != "auto":
        return {"16": "16-mixed", "bf16": "bf16-mixed"}.get(settings.precision, settings.precision)
    on_cuda = settings.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if on_cuda and torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"


def total_steps(settings: TrainerConfig, batches_per_epoch: int) -> int:
    """Return the steps of the whole training; -1 where it goes by the clock."""
    if settings.max_time:
        return -1  # the clock ends it
    steps = settings.max_epochs * batches_per_epoch
    return steps if settings.max_steps == -1 else min(steps, settings.max_steps)


def is_complete(config: ExperimentConfig, run_dir: Path) -> bool:
    """Whether training in ``run_dir`` ended after the epochs and steps that the settings ask for."""
    summary = run_dir / "training.json"
    if not summary.is_file():
        return False
    done = read_json(summary)
    return all(done.get(name, "") == getattr(config.trainer, name) for name in LENGTHS)


def is_main_process() -> bool:
    """Whether this is the first of the processes that train together, or the only one."""
    return bool(getattr(rank_zero_only, "rank", 0) == 0)


@contextmanager
def caught_interrupts() -> Iterator[threading.Event]:
    """Turn the first SIGINT or SIGTERM into an event; a second one acts as it did before."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # only the main thread may handle signals
        return
    previous: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: Any) -> None:
        event.set()
        signal.signal(number, previous[number])
        print("Stopping soon; once more to stop at once.", file=sys.stderr, flush=True)

    for number in previous:
        signal.signal(number, handle)
    try:
        yield event
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def own_signals() -> Callback:
    """Return a callback that gives SIGTERM back to the handler of before Lightning.

    Lightning puts its own in front, which ends training with exit code 0 where the signal comes after ``Epochs`` has
    looked for one, and then without a checkpoint of that step.
    """
    handler = signal.getsignal(signal.SIGTERM)

    def give_back(*args: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)

    return LambdaCallback(on_train_start=give_back)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep Lightning's advice off the terminal; errors still come through."""
    loggers = [logging.getLogger(name) for name in ("lightning", "lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
        for handler in logger.handlers:
            # Lightning keeps what stderr was when it was imported: a caller may have closed that since
            if isinstance(handler, logging.StreamHandler) and getattr(handler.stream, "closed", False):
                handler.stream = sys.stderr
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def build_loggers(config: ExperimentConfig, run_dir: Path, resumed_step: int) -> list[Logger]:
    """Return the loggers that ``config.logger`` asks for.

    Raises:
        InputError: Weights & Biases is asked for and not installed, or another logger cannot be made.
    """
    loggers: list[Logger] = []
    if config.logger.csv:
        loggers.append(MetricsTable(run_dir / "metrics.csv", resumed_step))
    if config.logger.tensorboard:
        loggers.append(TensorBoardLogger(run_dir, name="", version="tensorboard"))
    if config.logger.wandb:
        if importlib.util.find_spec("wandb") is None:
            raise InputError("logger.wandb", "wandb is not installed", "pip install 'brainuad[wandb]'")
        project, group = config.logger.project, config.logger.group or None
        loggers.append(WandbLogger(project=project, group=group, name=config.name, save_dir=run_dir))
    if config.logger.other:
        loggers.append(_other_logger(config.logger.other))
    return loggers


def _other_logger(settings: dict[str, Any]) -> Logger:
    """Make a logger of its class, ``_target_``, and its arguments.

    Raises:
        InputError: There is no such class, it is no logger, or it does not take the arguments.
    """
    arguments = dict(settings)
    name = str(arguments.pop("_target_", ""))
    try:
        found = get_class(name)
        if not issubclass(found, Logger):
            raise TypeError(f"{name} is no logger of Lightning's")
        return found(**arguments)
    except (ImportError, TypeError, ValueError) as error:  # ValueError: it is no class
        remedy = "Give the class as _target_, its arguments beside it, and install what it needs"
        raise InputError("logger.other", " ".join(str(error).split()), remedy) from error


def build_trainer(
    config: ExperimentConfig, run_dir: Path, epochs: Epochs, batches_per_epoch: int, resumed_step: int
) -> Trainer:
    """Return a Lightning trainer that takes all steps in one endless epoch (see ``Epochs``).

    Raises:
        InputError: A logger or the device cannot be used.
    """
    settings = config.trainer
    try:
        return Trainer(
            accelerator=settings.accelerator,
            devices=settings.devices,
            num_nodes=settings.num_nodes,
            precision=resolve_precision(settings),
            max_epochs=-1,
            max_steps=total_steps(settings, batches_per_epoch),
            gradient_clip_val=settings.gradient_clip_val or None,
            benchmark=True,  # shapes are few, so cuDNN may try its ways
            logger=build_loggers(config, run_dir, resumed_step),
            # in this order: progress shows the epoch that ended
            callbacks=[own_signals(), epochs, Progress(epochs)],
            plugins=[AtomicCheckpointIO()],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=run_dir,
        )
    except MisconfigurationException as error:
        fault, remedy = str(error).rstrip(".! "), "Check trainer.accelerator, devices and precision"
        raise InputError("trainer", fault, remedy) from error


def fit(
    config: ExperimentConfig, train: TrainingVolumes, val: TrainingVolumes, run_dir: Path, *, fold: int = 0
) -> Path:
    """Train one model and write everything about it to ``run_dir``.

    Writes ``checkpoints/last.ckpt`` (to resume), ``model/`` (settings and averaged weights of the lowest
    validation loss, written at the first validation and then just before ``last.ckpt``), ``metrics.csv``,
    ``tensorboard/``, ``pictures/`` and, when training is complete, ``curve.png`` and ``training.json``. A model that
    learns in one go (``Model.fit``) takes no steps; then there are ``model/`` and ``training.json`` alone.

    Args:
        config: The experiment. With ``config.resume`` training continues from ``checkpoints/last.ckpt`` if
            there is one, and ends with the weights of an unbroken run (on one CPU with as many threads, to the bit).
        train: Training volumes.
        val: Healthy validation volumes.
        run_dir: Folder of this model; made if missing.
        fold: Which fold it is, for the exported model's record of how it came about.

    Returns:
        The exported model's folder, ``run_dir / "model"``.

    Raises:
        InputError: What training starts from cannot be used; the checkpoint to resume from is damaged or belongs to
            other settings or data; nothing can be compiled here; or the loss or the weights became NaN or infinite.
            ``last.ckpt`` stays as it was then, and ``model/`` holds the best.
        KeyboardInterrupt: SIGINT or SIGTERM arrived; ``last.ckpt`` holds the last step, ``model/`` the best. Where it
            was the last step of all, training is complete nevertheless.
    """
    started = time.monotonic()
    module = Training(config, train, val)
    if config.trainer.max_time:
        module.budget = Budget(parse_time(config.trainer.max_time), started=started)
    run_dir.mkdir(parents=True, exist_ok=True)
    last = run_dir / "checkpoints" / "last.ckpt"
    resumed_step = check_resumable(last, config, module.data_hash) if config.resume and last.exists() else 0
    if module.model.fits:
        return fit_at_once(module, run_dir, fold, started)
    if not resumed_step:
        module.start()
    with quiet_lightning(), caught_interrupts() as interrupt:
        epochs = Epochs(config, run_dir, interrupt, fold, module.budget)
        trainer = build_trainer(config, run_dir, epochs, module.batches_per_epoch, resumed_step)
        prepare_networks(module, trainer)
        try:
            # the loader only counts: a step's number decides what is in its batch
            trainer.fit(module, itertools.count(), ckpt_path=last if resumed_step else None, weights_only=True)
        except Interrupted as stop:
            raise KeyboardInterrupt from stop
        except Exception:
            epochs.write_best()  # a repetition might end here too
            raise
    if trainer.is_global_zero:
        draw_curve(run_dir / "metrics.csv", run_dir / "curve.png")
        device, precision = str(trainer.strategy.root_device), str(trainer.precision)
        write_summary(config, run_dir, started, device=device, precision=precision, steps=trainer.global_step)
    if interrupt.is_set():  # in the last step, or while it was written
        raise KeyboardInterrupt
    return run_dir / "model"


def prepare_networks(module: Training, trainer: Trainer) -> None:
    """Lay weights out in memory as is fastest, and compile the networks where that is asked for.

    Raises:
        InputError: Nothing can be compiled here.
    """
    compiled, device = module.config.trainer.compile, trainer.strategy.root_device
    # measured: faster on CUDA if compiled, elsewhere but in bfloat16; the average as the weights, with which one
    # kernel for all brings it up to date
    if compiled if device.type == "cuda" else not trainer.precision.startswith("bf16"):
        module.model.to(memory_format=torch.channels_last)
        module.average.to(memory_format=torch.channels_last)
    if compiled:  # an epoch's last batch may be smaller: one more compilation
        compile_networks(module.model, device)


def fit_at_once(module: Training, run_dir: Path, fold: int, started: float) -> Path:
    """Have a model learn from all volumes without steps; write it, and return its folder."""
    config, volumes = module.config, module.train_volumes
    settings = module.model.fit(volumes.images, volumes.masks)
    if is_main_process():
        provenance = {"seed": config.seed, "fold": fold, "training_scans": len(volumes)}
        data = config.datamodule.cfg
        write_model(run_dir / "model", module.model, settings, data, provenance=provenance)
        write_summary(config, run_dir, started, device="cpu", precision="32-true", steps=0)
    return run_dir / "model"


def write_summary(config: ExperimentConfig, run_dir: Path, started: float, **how: Any) -> None:
    """Write ``training.json``, which says that training is complete and how it went.

    Args:
        config: The experiment.
        run_dir: Folder of the model.
        started: ``time.monotonic()`` when training began.
        how: Device, precision and steps.
    """
    summary = {
        "version": __version__,
        "lightning": lightning.__version__,
        "torch": torch.__version__,
        **how,
        **{name: getattr(config.trainer, name) for name in LENGTHS},
        "seconds": round(time.monotonic() - started, 1),
    }
    write_json(run_dir / "training.json", summary)
