"""Every setting of an experiment, as dataclasses.

Field names below ``model.cfg``, ``datamodule.cfg`` and ``trainer`` are those of the published release where it has
the setting, so that its commands and overrides work unchanged; that is why some are in camel case. The YAML files in
``conf/`` are presets: they change values, never add names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from omegaconf import MISSING

from brainuad.errors import InputError

_TIME = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{2}):(\d{2})")
SSIM_SIGMAS = (0.3, 0.5, 0.7, 0.9, 1.1, 1.3, 1.5, 1.7)


# What a field's metadata may say of it
TEST_TIME = {"test_time": True}  # it needs no training, so it may change afterwards
# it may differ between the two halves of a resumed run, for the steps do not depend on it
FREE = {"free_on_resume": True}
_PRECISIONS = ("auto", "32", "32-true", "bf16", "bf16-mixed", "bf16-true", "16", "16-mixed", "64", "64-true")


def _free(default: Any) -> Any:
    return field(default=default, metadata=FREE)


def _at_least(least: int, default: Any, **more: bool) -> Any:
    return field(default=default, metadata={"least": least, **more})


def _one_of(default: str, *others: str, **more: bool) -> Any:
    return field(default=default, metadata={"choices": (default, *others), **more})


@dataclass
class ModelSettings:
    """Settings of every model; each model adds its own in a subclass, with which it is registered.

    Fields that need no training are marked: ``field(default=..., metadata=TEST_TIME)``.

    Attributes:
        name: Entry in the model registry.
        sigma_ens: Gaussian widths of the SSIM ensemble, in voxels.
    """

    name: str = ""
    sigma_ens: tuple[float, ...] = field(default=SSIM_SIGMAS, metadata=TEST_TIME)


def settings_of(node: Any, prefix: str = "") -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """Yield the dotted name, value and metadata of every setting of an experiment, and of every node above one."""
    for known in fields(node):
        name, value = prefix + known.name, getattr(node, known.name)
        yield name, value, known.metadata
        if is_dataclass(value):
            yield from settings_of(value, f"{name}.")


def untrained_settings(settings: ModelSettings) -> list[str]:
    """Return the names of a model's settings that need no training."""
    return [field.name for field in fields(settings) if field.metadata.get("test_time")]


def has_setting(settings: ModelSettings | type[ModelSettings], name: str) -> bool:
    """Return whether a model has a setting, which others may not have, such as "shared_noise"."""
    return any(field.name == name for field in fields(settings))


def lists_to_tuples(node: Any) -> None:
    """Make the lists in settings, and in the nodes below, the tuples that OmegaConf was given."""
    for name, value in vars(node).items():
        if isinstance(value, list):
            setattr(node, name, tuple(value))
        elif is_dataclass(value):
            lists_to_tuples(value)


@dataclass
class DataConfig:
    """Which scans are used, how they are resampled to the model's grid, and how training samples them.

    Attributes:
        mode: "t1", "t2" or "flair".
        imageDim: Grid in voxels (x, y, z) before the reduction by ``rescaleFactor``.
        rescaleFactor: Reduction along every axis (192 x 192 x 100 at 1 mm becomes 96 x 96 x 50 at 2 mm).
        affine: "ignored" takes 1 voxel as 1 mm and centres the array (the release); "used" places the scan by its
            affine on the fixed atlas grid.
        smoothing_iterations: Curvature-flow iterations on images (time step 0.125).
        bias_levels: Levels of the bias correction of a raw scan, see `brainuad.data.extract.correct_bias`: 4 as
            published, which removes large lesions as if they were bias; 1 spares them. Prepared scans are
            corrected already.
        aug_intensity: Random gamma, bias field, blur and ghosting on training slices.
        batch_size: Slices per step, each from another volume. If there are fewer volumes, an epoch is one step.
        num_workers: Processes that prepare volumes.
        sample_set: Use only the first few subjects of every split, for a trial run.
        lr: Learning rate.
        leak_free: Drop training and validation subjects that are also test subjects, validation subjects that
            are also in training, and duplicated rows.
        cache_dir: Folder for prepared volumes, 20 GB of them at most, and for reconstructions; empty means the user's
            cache folder.
    """

    mode: str = _one_of("t1", "t2", "flair")
    imageDim: tuple[int, int, int] = (192, 192, 100)
    rescaleFactor: float = 2.0
    affine: str = _one_of("ignored", "used")
    smoothing_iterations: int = _at_least(0, 3)
    bias_levels: int = 4
    aug_intensity: bool = True
    batch_size: int = _at_least(1, 32)
    num_workers: int = _free(2)
    sample_set: bool = False
    lr: float = 1e-4
    leak_free: bool = True
    cache_dir: str = _free("")


@dataclass
class ModelNode:
    """Group ``model``: the settings of one model."""

    cfg: ModelSettings = field(default_factory=ModelSettings)


@dataclass
class DataNode:
    """Group ``datamodule``."""

    cfg: DataConfig = field(default_factory=DataConfig)


@dataclass
class TrainerConfig:
    """Group ``trainer``: passed on to Lightning's trainer.

    Attributes:
        max_epochs: Number of epochs; an epoch is one random slice of every training volume.
        max_steps: Optimiser steps after which training ends early (-1: no limit).
        max_time: Time after which training ends, HH:MM:SS or DD:HH:MM:SS, in place of ``max_epochs`` and ``max_steps``;
            empty for no limit. Compiling and the last validation count. The schedules of learning rate, moving average
            and noise levels follow the fraction of the time that is used. A resumed run gets this time in addition.
        accelerator: "auto", "cpu", "gpu" or "mps".
        devices: Number of devices per node.
        num_nodes: Number of nodes.
        precision: "auto" (bf16 on CUDA that has matrix units for it, else 32 bits) or Lightning's names. "32" applies
            to the evaluation, too, which otherwise uses bfloat16 on processors with native support.
        limit_train_batches: Fraction (float) or number (int) of batches per epoch.
        gradient_clip_val: Largest gradient norm.
        check_val_every_n_epoch: Epochs between validations.
        warmup_steps: Steps over which the learning rate rises from zero.
        decay_steps: Steps at the end of training over which it falls to zero, linearly. A run that is resumed with
            another end decays before that end, so resume it from before the decay.
        ema_decay: Decay of the exponential moving average of the weights; 0 turns it off.
        compile: Train with ``torch.compile``. It needs minutes at first, and a compiler: Triton on CUDA, C++ elsewhere.
    """

    max_epochs: int = _at_least(1, 1600, **FREE)
    max_steps: int = _at_least(-1, -1, **FREE)
    max_time: str = _free("")
    accelerator: str = _one_of("auto", "cpu", "gpu", "cuda", "mps", **FREE)
    devices: Any = field(default=1, metadata=FREE)
    num_nodes: int = _free(1)
    precision: str = _one_of(*_PRECISIONS)
    limit_train_batches: Any = 1.0
    gradient_clip_val: float = 1.0
    check_val_every_n_epoch: int = _at_least(1, 1, **FREE)
    warmup_steps: int = _at_least(0, 0)
    decay_steps: int = _at_least(0, 0)
    ema_decay: float = 0.999
    compile: bool = _free(False)


@dataclass
class CallbacksConfig:
    """Group ``callbacks``.

    Attributes:
        picture_every_n_epochs: Epochs between pictures of sample reconstructions; 0 for none.
        checkpoint_every_seconds: Time between writes of the last checkpoint, and of the best model if it has changed; 0
            writes after each step. Several devices check every 16 steps whether this time has passed.
    """

    picture_every_n_epochs: int = _at_least(0, 20)
    checkpoint_every_seconds: float = _at_least(0, 60.0)


@dataclass
class LoggerConfig:
    """Group ``logger``: where to log training curves. wandb needs the extra of that name.

    Attributes:
        csv: Write ``metrics.csv``.
        tensorboard: Write TensorBoard event files.
        wandb: Log to Weights & Biases.
        project: Its project.
        group: Its group of runs, "" for none.
        other: Any other logger of Lightning's, by its class as ``_target_`` and its arguments.
    """

    csv: bool = True
    tensorboard: bool = True
    wandb: bool = False
    project: str = "brainuad"
    group: str = ""
    other: Any = None  # a dict; Hydra replaces one of these only key by key


@dataclass
class ExperimentConfig:
    """The whole experiment: train fold by fold, then evaluate every test set of the modality.

    Attributes:
        seed: Seed of all random numbers; the paper's is 3141.
        start_fold: First fold to run, as in the release.
        num_folds: The folds end before this one, as in the release: 5 runs all of them.
        fold: The single fold to run, instead of ``start_fold`` and ``num_folds``; None uses those.
        onlyEval: Skip training and evaluate ``load_checkpoint``.
        load_checkpoint: Folder of a trained model or of an earlier run, or a checkpoint of the paper's release.
        initial_weights: Shipped model, or folder of a model, whose weights training starts from; empty for random ones.
        resume: Continue the run in the log folder from its last checkpoint.
        allow_leaks: Train even if a subject is in two splits.
        reference: Use the release's choices wherever they differ from this package's.
        data_dir: The paper's data layout, a manifest CSV, or a file of ``brainuad pack`` (.npz, to train on); defaults
            to ``DATA_DIR`` of ``pc_environment.env``.
        log_dir: Folder of all runs; defaults to ``LOG_DIR`` of ``pc_environment.env``.
        name: Name of the run's folder.
    """

    model: ModelNode = field(default_factory=ModelNode)
    datamodule: DataNode = field(default_factory=DataNode)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    callbacks: CallbacksConfig = field(default_factory=CallbacksConfig, metadata=FREE)
    logger: LoggerConfig = field(default_factory=LoggerConfig, metadata=FREE)
    seed: int = 3141
    start_fold: int = _at_least(0, 0, **FREE)
    num_folds: int = _at_least(1, 1, **FREE)
    fold: int | None = _at_least(0, None, **FREE)
    onlyEval: bool = _free(False)
    load_checkpoint: str = _free("")
    initial_weights: str = ""
    resume: bool = _free(False)
    allow_leaks: bool = _free(False)
    reference: bool = False
    data_dir: str = _free(MISSING)
    log_dir: str = _free(MISSING)
    name: str = _free("ddpm")

    def folds(self) -> range:
        """Return the folds to run."""
        if self.fold is not None:
            return range(self.fold, self.fold + 1)
        return range(self.start_fold, self.num_folds)


def flat_settings(config: ExperimentConfig) -> dict[str, Any]:
    """Return every setting that has a value, by its dotted name, as plain YAML values."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value, _ in settings_of(config)
        if not is_dataclass(value) and value != MISSING
    }


def differences(there: Mapping[str, Any], here: Mapping[str, Any], names: Iterable[str]) -> str:
    """Return which of some settings differ, "seed=1 there, 2 here; ...", or "" if none does."""
    pairs = {name: (there.get(name), here.get(name)) for name in names}
    return "; ".join(f"{name}={old} there, {new} here" for name, (old, new) in pairs.items() if old != new)


def differing_settings(saved: Mapping[str, Any], config: ExperimentConfig) -> str:
    """Return the `differences` that forbid resuming a run of settings ``saved`` with ``config``.

    Args:
        saved: Result of ``flat_settings``. Settings of other models, which earlier versions wrote, are ignored.
        config: The settings to continue with.
    """
    here = flat_settings(config)
    free = tuple(
        f"{name}." if is_dataclass(value) else name
        for name, value, rules in settings_of(config)
        if rules.get("free_on_resume") or rules.get("test_time")
    )
    names = {*here, *(name for name in saved if not name.startswith("model.cfg."))}
    if saved.get("model.cfg.name") != config.model.cfg.name:  # its other settings need not be listed
        names = {name for name in names if not name.startswith("model.cfg.")} | {"model.cfg.name"}
    return differences(saved, here, sorted(name for name in names if not name.startswith(free)))


def parse_time(text: str) -> float:
    """Return the seconds of "HH:MM:SS" or "DD:HH:MM:SS".

    Raises:
        InputError: It has another format, or is not a time.
    """
    match = _TIME.fullmatch(text.strip())
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups()) if match else (0, 0, 0, 0)
    total = 86400.0 * days + 3600 * hours + 60 * minutes + seconds
    if total == 0:
        raise InputError("trainer.max_time", f"{text!r} is no time", "Write HH:MM:SS, such as 00:08:30")
    return total
