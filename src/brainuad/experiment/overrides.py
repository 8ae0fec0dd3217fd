"""What a user typed after ``brainuad train``: flags, overrides, and the paths of ``pc_environment.env``."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import yaml
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import brainuad.models  # noqa: F401  (registers them)
from brainuad.config import ExperimentConfig, ModelNode, parse_time, settings_of
from brainuad.errors import InputError
from brainuad.models.base import own_settings, settings_class
from brainuad.registry import MODELS

CONFIG_MODULE = "brainuad.conf"
REQUIRED = "REQUIRED"  # in a preset: the user gives it (of a setting with a default, Hydra's ??? would be the default)
GROUPS = ("experiment", "model", "datamodule", "trainer", "callbacks", "logger")
FLAGS = {"--resume": "resume=True", "--allow-leaks": "allow_leaks=True"}
# Hydra's flags that take a value as the next word, and those that bring configuration files of the user's own
VALUE_FLAGS = {"--cfg", "-c", "--package", "-p", "--info", "-i"}
FILE_FLAGS = {"--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"}
# settings of the release that there are none of here, by the last part of their names, and what there is
RELEASE_HINTS = {
    "resume_train": "It is called resume here",
    "ckpt_path": "A run goes on by resume=True, and load_checkpoint=DIR names what onlyEval=True evaluates",
    "pickle_preds": "It is not needed: figures are in cases.csv, and `brainuad evaluate --maps` writes maps as NIfTI",
    "test_after_training": "It is not needed: training is always followed by evaluation, and resume=True repeats that",
    "testsets": "All test sets of the modality that are there are evaluated; `brainuad evaluate --sets` chooses",
    "objective": "It is not needed: the network predicts the clean image, as published",
    "residualmode": "It is not needed: l1 and l2 are among the scores that are evaluated",
    "OpenaiUnet": "It is not needed: the published network is the only one of model=ddpm",
    "conv_resample": "It is not needed: the network halves and doubles its resolution by convolutions, as published",
    "dropout_unet": "It is not needed: the network has no dropout, as published",
    "condition": "The conditioned model is model=cddpm",
    "project": "It is logger.project here, as its group is logger.group",
}
LINE = re.compile(r"""\s*(?:export\s+)?(\w+)\s*=\s*(?:"([^"]*)"|'([^']*)'|([^#"']*?))\s*(?:#.*)?""")
# The model's node stays empty, so that a preset can fill it with the settings of any model.
ConfigStore.instance().store(name="schema", node=ExperimentConfig(model=ModelNode(MISSING)))


def store_models() -> None:
    """Make a preset of the group ``model`` of every registered model: its own settings and their defaults."""
    for name in MODELS:
        ConfigStore.instance().store(group="model", name=name, node={"cfg": settings_class(name)(name=name)})


store_models()


class UnknownName(InputError):
    """A setting, group or preset that does not exist."""


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return Hydra's flags with their values, and the overrides; our own flags become overrides."""
    flags, overrides = [], []
    words = iter(arguments)
    for word in words:
        if word in FLAGS:
            overrides.append(FLAGS[word])
        elif word.startswith("-"):
            flags += [word, *islice(words, word in VALUE_FLAGS | FILE_FLAGS)]
        else:
            overrides.append(word)
    return flags, overrides


def check_overrides(overrides: Sequence[str], *, multirun: bool, own_files: bool = False) -> None:
    """Make sure that overrides name existing things and have values of the right type.

    Args:
        overrides: ``name=value`` words.
        multirun: Values may be lists of alternatives.
        own_files: Presets may be the user's own, so that only settings are checked.

    Raises:
        UnknownName: A name does not exist; the message suggests the nearest.
        InputError: A value cannot be used.
    """
    store_models()
    try:
        with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
            parsed = OverridesParser.create().parse_overrides(list(overrides))
            for override in parsed:
                _check_name(override, own_files)
            _check_model_settings(parsed)
            if not (multirun or own_files):
                to_experiment(compose("config", overrides=list(overrides)))
    except OverrideParseException as error:
        raise InputError("overrides", _one_line(error), "Write NAME=VALUE; quote special characters") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError("overrides", _one_line(error), "See `brainuad train --help`") from error


def read_overrides(overrides: Sequence[str]) -> ExperimentConfig:
    """Return the experiment that overrides of ``brainuad train`` make.

    Raises:
        UnknownName: A name does not exist; the message suggests the nearest.
        InputError: A value cannot be used.
    """
    check_overrides(overrides, multirun=False)
    with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
        return to_experiment(compose("config", overrides=list(overrides)))


def _check_name(override: Override, own_files: bool) -> None:
    name = override.key_or_group
    if re.split(r"[./]", name)[0] == "hydra":
        return
    if name not in GROUPS:
        if name not in (known := setting_names()):
            raise UnknownName(name, "no such setting", _suggestion(name, [*known, *GROUPS]))
        return
    presets = list(preset_names(name))
    for value in override.sweep_iterator() if override.is_sweep_override() else [override.value()]:
        if isinstance(value, str) and value not in presets and not own_files:
            raise UnknownName(f"{name}={value}", f"no such preset of {name}", _suggestion(value, presets))


def _check_model_settings(overrides: Sequence[Override]) -> None:
    """Make sure that the chosen model has the settings that were given; of several models in a sweep, any may."""
    choice = [str(word.input_line) for word in overrides if word.key_or_group in (*GROUPS, "model.cfg.name")]
    given = [name[1] for word in overrides if (name := re.match(r"model\.cfg\.(.*)", word.key_or_group))]
    with suppress(HydraException, OmegaConfBaseException):
        chosen = compose("config", overrides=choice).model.cfg.name if given else ""
        for setting in given:
            has = [model for model in MODELS if setting in {own.name for own in fields(settings_class(model))}]
            if chosen in MODELS and chosen not in has:
                remedy = f"It is one of {', '.join(has)}: add model={has[0]}"
                raise UnknownName(f"model.cfg.{setting}", f"no setting of the model {chosen}", remedy)


def setting_names() -> list[str]:
    """Return the dotted name of every setting, those of all models among them, and of every node above one."""
    of_models = (f"model.cfg.{field.name}" for model in MODELS for field in fields(settings_class(model)))
    return list(dict.fromkeys([*(name for name, _, _ in settings_of(ExperimentConfig())), *of_models]))


def preset_names(group: str) -> Iterator[str]:
    """Yield the presets of a group, those in folders as ``folder/name``. Hydra must be initialised."""
    loader = GlobalHydra.instance().config_loader()
    yield from loader.get_group_options(group)
    for folder in loader.get_group_options(group, results_filter=ObjectType.GROUP):
        yield from (f"{folder}/{name}" for name in loader.get_group_options(f"{group}/{folder}"))


def _suggestion(name: str, known: Sequence[str]) -> str:
    """Suggest the known name that is nearest, or nearest to the last part of a dotted one."""
    last = re.split(r"[./]", name)[-1]
    if last in RELEASE_HINTS:
        return RELEASE_HINTS[last]
    # Of names with the same last part the first is meant by it.
    meant = {re.split(r"[./]", full)[-1].lower(): full for full in reversed(known)}
    meant |= {full.lower(): full for full in known}
    for wanted in (name, last):
        if near := difflib.get_close_matches(wanted.lower(), meant, n=1):
            return f"Did you mean {meant[near[0]]!r}?"
    return f"Known: {', '.join(known)}" if len(known) < 10 else "`brainuad train --cfg job` lists all settings"


def _one_line(error: Exception) -> str:
    """Return Hydra's message and its cause as one line, without the lines that describe its internals."""
    texts = [str(error)] + ([str(error.__cause__)] if error.__cause__ else [])
    lines = [line.strip() for text in texts for line in text.splitlines()]
    internal = re.compile(r"(full_key|reference_type|object_type|See http)|[\^.]*$")
    kept = [line.rstrip(".") for line in lines if not internal.match(line)]
    return "; ".join(dict.fromkeys(kept)) or type(error).__name__


def to_experiment(config: DictConfig) -> ExperimentConfig:
    """Return the dataclass of a composed configuration; lists become tuples.

    ``reference`` brings ``model.cfg.shared_noise`` with it, in training as in evaluation.

    Raises:
        OmegaConfBaseException: A name or the type of a value is not in the schema.
    """
    values: Any = OmegaConf.to_container(config)
    settings = values.get("model", {}).get("cfg", {})
    name = str(settings.get("name", "ddpm"))
    schema = ExperimentConfig(model=ModelNode(settings_class(name)(name=name)))
    if settings:
        values["model"]["cfg"] = own_settings(name, settings)
    merged = OmegaConf.merge(OmegaConf.structured(schema), values)
    assert isinstance(merged, DictConfig)

    def lists_to_tuples(node: Any) -> None:
        for key, value in vars(node).items():
            if isinstance(value, list):
                setattr(node, key, tuple(value))
            elif is_dataclass(value):
                lists_to_tuples(value)

    for key in ("data_dir", "log_dir"):
        if OmegaConf.is_missing(merged, key):  # which to_object refuses; it is reported where it is needed
            merged[key] = ""
    experiment = OmegaConf.to_object(merged)
    assert isinstance(experiment, ExperimentConfig)
    lists_to_tuples(experiment)
    if experiment.reference and "shared_noise" in vars(experiment.model.cfg):
        model: Any = experiment.model.cfg
        model.shared_noise = True
    return experiment


def read_settings(path: Path) -> ExperimentConfig:
    """Return the experiment whose settings a run stored.

    Raises:
        InputError: They cannot be read, or name what there is not in this version.
    """
    try:
        stored = OmegaConf.load(path)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(path, f"cannot be read ({_one_line(error)})", "Restore it, or start a new run") from error
    if not isinstance(stored, DictConfig):
        raise InputError(path, "holds no settings", "Restore it, or start a new run")
    try:
        return to_experiment(stored)
    except (InputError, OmegaConfBaseException) as error:
        fault = f"has settings that this version does not have ({_one_line(error)})"
        raise InputError(path, fault, "Start a new run, or use the version that it was begun with") from error


def check_settings(config: ExperimentConfig) -> None:
    """Raise InputError for values that would fail late, or be misunderstood."""
    data, model = config.datamodule.cfg, config.model.cfg
    for name, value, rules in settings_of(config):
        if value not in rules.get("choices", [value]):
            raise InputError(name, f"{value!r} is unknown", f"Choose one of {', '.join(rules['choices'])}")
        if "least" in rules and value is not None and value < rules["least"]:
            raise InputError(name, f"{value} is too small", f"Give {rules['least']} or more")
        if value == REQUIRED and not config.onlyEval:  # which takes it from the saved model
            raise InputError(name, "has no value", f"Add {name}=VALUE")
    if config.trainer.max_time:
        parse_time(config.trainer.max_time)
    if not config.folds():
        fault = f"is {config.num_folds}, before which the folds end, and start_fold is {config.start_fold}"
        raise InputError("num_folds", fault, f"Give fold={config.start_fold} for this fold alone")
    for name, real in (
        ("datamodule.cfg.lr", data.lr),
        ("datamodule.cfg.rescaleFactor", data.rescaleFactor),
        ("model.cfg.sigma_ens", min(model.sigma_ens, default=0.0)),
        ("datamodule.cfg.imageDim", min(data.imageDim) if len(data.imageDim) == 3 else 0),
    ):
        if real <= 0:
            raise InputError(name, "must be positive (imageDim: three numbers)", "Correct it")
    if not 0 <= (decay := config.trainer.ema_decay) < 1:
        raise InputError("trainer.ema_decay", f"{decay} is not in [0, 1)", "Give 0 to turn it off")
    if config.onlyEval and not config.load_checkpoint:
        raise InputError("load_checkpoint", "is empty", "onlyEval=True needs the folder of a model or a run")
    with torch.device("meta"):  # it checks its own settings, here without the memory
        MODELS[model.name](model)


def read_environment(path: Path) -> dict[str, str]:
    """Read KEY=value lines; ``#`` begins a comment, values may be quoted, ``export`` may stand in front.

    Raises:
        InputError: A line is something else, or the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(path, f"cannot be read ({error})", "Make it a text file of KEY=value lines") from error
    values = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = LINE.fullmatch(line)
        if not match:
            fault = f"{line.strip()!r} is not KEY=value"
            raise InputError(f"{path}:{number}", fault, "Correct or remove the line")
        values[match[1]] = match[match.lastindex or 0]
    return values


def path_overrides(overrides: Sequence[str], env_file: Path) -> list[str]:
    """Return overrides for ``data_dir`` and ``log_dir`` where the user gave none.

    The value is that of ``DATA_DIR`` and ``LOG_DIR`` in ``env_file`` (relative to its folder), else in the
    environment; without any, runs are written to ``logs``.

    Raises:
        InputError: ``DATA_DIR`` is nowhere.
    """
    in_file = read_environment(env_file) if env_file.is_file() else {}
    given = {override.split("=", 1)[0].lstrip("+") for override in overrides}
    added = []
    for name, variable, default in (("data_dir", "DATA_DIR", ""), ("log_dir", "LOG_DIR", "logs")):
        if name in given:
            continue
        value = os.environ.get(variable) or default
        if in_file.get(variable):
            value = str(env_file.parent / Path(in_file[variable]).expanduser())
        if not value:
            remedy = f"Write DATA_DIR=/your/data into {env_file}, or add data_dir=/your/data to the command"
            raise InputError("DATA_DIR", "is not set", remedy)
        added.append("{}='{}'".format(name, value.replace("'", r"\'")))
    return added
