"""Settings of experiments as Hydra and OmegaConf know them: presets, their dataclasses, and the checks of values."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import brainuad.models  # noqa: F401  (registers them)
from brainuad.config import ExperimentConfig, ModelNode, has_setting, lists_to_tuples, parse_time, settings_of
from brainuad.errors import InputError
from brainuad.models.base import own_settings, settings_class
from brainuad.registry import MODELS

CONFIG_MODULE = "brainuad.conf"
REQUIRED = "REQUIRED"  # in a preset: the user gives it (of a setting with a default, Hydra's ??? would be the default)
# The model's node stays empty, so that a preset can fill it with the settings of any model.
ConfigStore.instance().store(name="schema", node=ExperimentConfig(model=ModelNode(MISSING)))


def store_models() -> None:
    """Make a preset of the group ``model`` of every registered model: its own settings and their defaults."""
    for name in MODELS:
        ConfigStore.instance().store(group="model", name=name, node={"cfg": settings_class(name)(name=name)})


store_models()


def to_experiment(config: DictConfig) -> ExperimentConfig:
    """Return the dataclass of a composed configuration; lists become tuples.

    ``reference`` brings ``model.cfg.shared_noise`` with it, in training as in evaluation.

    Raises:
        OmegaConfBaseException: A name or the type of a value is not in the schema.
    """
    values: Any = OmegaConf.to_container(config)
    settings = values.get("model", {}).get("cfg", {})
    name = str(settings.get("name", "ddpm"))
    schema = OmegaConf.structured(ExperimentConfig(model=ModelNode(settings_class(name)(name=name))))
    if settings:
        values["model"]["cfg"] = own_settings(name, settings)
    for key in ("data_dir", "log_dir"):
        if values.get(key, MISSING) == MISSING:  # it is reported where it is needed
            values[key] = ""
    experiment = OmegaConf.to_object(OmegaConf.merge(schema, values))
    assert isinstance(experiment, ExperimentConfig)
    lists_to_tuples(experiment)
    model: Any = experiment.model.cfg
    if experiment.reference and has_setting(model, "shared_noise"):
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
        raise InputError(path, f"cannot be read ({one_line(error)})", "Restore it, or start a new run") from error
    if not isinstance(stored, DictConfig):
        raise InputError(path, "holds no settings", "Restore it, or start a new run")
    try:
        return to_experiment(stored)
    except (InputError, OmegaConfBaseException) as error:
        fault = f"has settings that this version does not have ({one_line(error)})"
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


def one_line(error: Exception) -> str:
    """Return Hydra's message and its cause as one line, without the lines that describe its internals."""
    texts = [str(error)] + ([str(error.__cause__)] if error.__cause__ else [])
    lines = [line.strip() for text in texts for line in text.splitlines()]
    internal = re.compile(r"(full_key|reference_type|object_type|See http)|[\^.]*$")
    kept = [line.rstrip(".") for line in lines if not internal.match(line)]
    return "; ".join(dict.fromkeys(kept)) or type(error).__name__
