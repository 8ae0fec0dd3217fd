"""Settings as a user types them after ``brainuad train``: Hydra composes them, and here they get better errors."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from itertools import islice

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from brainuad.config import ExperimentConfig, has_setting, settings_of
from brainuad.errors import InputError
from brainuad.experiment.settings import CONFIG_MODULE, one_line, store_models, to_experiment
from brainuad.models.base import settings_class
from brainuad.registry import MODELS

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


def read_overrides(overrides: Sequence[str]) -> ExperimentConfig:
    """Return the experiment that overrides of ``brainuad train`` make.

    Raises:
        UnknownName: A name does not exist; the message suggests the nearest.
        InputError: A value cannot be used.
    """
    with _hydra():
        _check_names(overrides)
        return to_experiment(compose("config", overrides=list(overrides)))


def check_names(overrides: Sequence[str], *, own_files: bool = False) -> None:
    """Make sure that overrides name existing things; for those that cannot be composed here, as those of a multirun.

    Args:
        overrides: ``name=value`` words.
        own_files: Presets may be the user's own, so that only settings are checked.

    Raises:
        UnknownName: A name does not exist; the message suggests the nearest.
        InputError: A word is no override.
    """
    with _hydra():
        _check_names(overrides, own_files)


@contextmanager
def _hydra() -> Iterator[None]:
    """Let Hydra know the presets, and make one line of its errors."""
    store_models()
    try:
        with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
            yield
    except OverrideParseException as error:
        raise InputError("overrides", one_line(error), "Write NAME=VALUE; quote special characters") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError("overrides", one_line(error), "See `brainuad train --help`") from error


def _check_names(overrides: Sequence[str], own_files: bool = False) -> None:
    of_models = (f"model.cfg.{field.name}" for model in MODELS for field in fields(settings_class(model)))
    settings = list(dict.fromkeys([*(name for name, _, _ in settings_of(ExperimentConfig())), *of_models]))
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    for override in parsed:
        name = override.key_or_group
        if name in GROUPS:
            presets = list(_preset_names(name))
            for value in override.sweep_iterator() if override.is_sweep_override() else [override.value()]:
                if isinstance(value, str) and value not in presets and not own_files:
                    raise UnknownName(f"{name}={value}", f"no such preset of {name}", _suggestion(value, presets))
        elif name not in settings and re.split(r"[./]", name)[0] != "hydra":
            raise UnknownName(name, "no such setting", _suggestion(name, [*settings, *GROUPS]))
    _check_model_settings(parsed)


def _check_model_settings(overrides: Sequence[Override]) -> None:
    """Make sure that the chosen model has the settings that were given; of several models in a sweep, any may."""
    choice = [str(word.input_line) for word in overrides if word.key_or_group in (*GROUPS, "model.cfg.name")]
    given = [name[1] for word in overrides if (name := re.match(r"model\.cfg\.(.*)", word.key_or_group))]
    with suppress(HydraException, OmegaConfBaseException):
        chosen = compose("config", overrides=choice).model.cfg.name if given else ""
        for setting in given:
            has = [model for model in MODELS if has_setting(settings_class(model), setting)]
            if chosen in MODELS and chosen not in has:
                remedy = f"It is one of {', '.join(has)}: add model={has[0]}"
                raise UnknownName(f"model.cfg.{setting}", f"no setting of the model {chosen}", remedy)


def _preset_names(group: str) -> Iterator[str]:
    """Yield the presets of a group, those in folders as ``folder/name``."""
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
