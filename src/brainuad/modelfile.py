"""A trained model as a folder: ``config.yaml``, ``model.safetensors``, and, if it is calibrated,
``calibration.json`` and ``health.safetensors``.

No content of a file is executed: settings are plain YAML, checked against the dataclasses, and weights are
safetensors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

import brainuad.models  # noqa: F401  (registers them)
from brainuad._version import __version__
from brainuad.calibration import Calibration
from brainuad.config import DataConfig, ModelSettings, lists_to_tuples
from brainuad.errors import InputError
from brainuad.files import atomic_path, read_json, sha256, write_json, write_text
from brainuad.models.base import Model, own_settings, settings_class
from brainuad.registry import MODELS
from brainuad.scoring.health import HealthyMoments

FORMAT = 1
CONFIG, WEIGHTS, CALIBRATION = "config.yaml", "model.safetensors", "calibration.json"
HEALTH = "health.safetensors"
WEIGHTS_HASH = "weights_sha256"  # entry of config.yaml
_OF_THIS_MACHINE = ("cache_dir", "num_workers")  # settings of the data that are not stored with a model

SCALES = ":scales"  # behind the name of weights in 8 bits

T = TypeVar("T")


def portable(config: DataConfig) -> dict[str, Any]:
    """Return the settings of the data that are stored with a model: all but those of this machine."""
    return {k: v for k, v in dataclasses.asdict(config).items() if k not in _OF_THIS_MACHINE}


def known_models() -> list[str]:
    """Return the names of the models that come with the package."""
    folder = files("brainuad.assets") / "models"
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []


@contextmanager
def model_folder(name_or_dir: str | Path, fold: int = 0) -> Iterator[Path]:
    """Yield the folder of a shipped model, or of the model in a folder: see `brainuad.detector.load_model`.

    Raises:
        InputError: There is no such model.
    """
    known = known_models()
    if str(name_or_dir) in known:
        with as_file(files("brainuad.assets") / "models" / str(name_or_dir)) as folder:
            yield folder
        return
    if not Path(name_or_dir).is_dir():
        names = f"Shipped models: {', '.join(known)}" if known else "No model is shipped with this version"
        raise InputError(name_or_dir, "is neither a shipped model nor a folder", names)
    yield find_model(Path(name_or_dir), fold)


def find_model(folder: Path, fold: int) -> Path:
    """Return the exported model in the folder of a model, of a fold or of a run.

    Raises:
        InputError: There is none.
    """
    candidates = (folder / f"fold{fold}" / "model", folder / "model", folder)
    for candidate in candidates:
        if (candidate / WEIGHTS).is_file() and (candidate / CONFIG).is_file():
            return candidate
    looked = ", ".join(str(candidate) for candidate in candidates)
    raise InputError(
        folder,
        f"holds no trained model (looked for {CONFIG} and {WEIGHTS} in {looked})",
        "Give the folder of a model or a run",
    )


def write_model(
    folder: str | Path,
    model: nn.Module,
    model_config: ModelSettings,
    data_config: DataConfig,
    *,
    provenance: dict[str, Any] | None = None,
    calibration: Calibration | None = None,
    health: HealthyMoments | None = None,
    bits: int = 32,
) -> None:
    """Write a model folder; each file is replaced completely or not at all.

    Args:
        folder: Made if missing.
        model: Its ``state_dict`` is written.
        model_config: Settings of the model.
        data_config: Settings of the data it was trained on.
        provenance: Further entries of ``config.yaml``, plain values: seed, steps, training data ...
        calibration: Thresholds and scores on healthy scans.
        health: Healthy statistics for scores relative to health.
        bits: Of floating-point weights: 32, 16, or 8. 8 stores matrices and kernels in 8 bits with a scale for each
            output channel, and the rest in 16.

    Raises:
        InputError: The folder cannot be written to.
    """
    folder = Path(folder)
    with atomic_path(folder / WEIGHTS) as temporary:
        temporary.write_bytes(save(rounded(model.state_dict(), bits)))  # `save_file` does not report a full disk
    if calibration is not None:
        write_json(folder / CALIBRATION, calibration.to_dict())
    if health is not None:
        health.save(folder / HEALTH)
    settings = {
        "format": FORMAT,
        "version": __version__,
        "model": dataclasses.asdict(model_config),
        "data": portable(data_config),
        **(provenance or {}),
        WEIGHTS_HASH: sha256(folder / WEIGHTS),
    }
    write_text(folder / CONFIG, OmegaConf.to_yaml(OmegaConf.create(settings)))


def rounded(weights: Mapping[str, Tensor], bits: int) -> dict[str, Tensor]:
    """Return weights in 32, 16 or 8 bits, as `write_model` says; scales under the name with ``SCALES`` behind."""
    found: dict[str, Tensor] = {}
    for name, value in weights.items():
        value = value.detach().cpu()
        if bits == 8 and value.is_floating_point() and value.ndim > 1:
            levels, scales = to_8_bits(value.float().numpy())
            found |= {name: torch.from_numpy(levels), name + SCALES: torch.from_numpy(scales)}
        else:
            found[name] = (value.half() if bits < 32 and value.is_floating_point() else value).contiguous()
    return found


def recorded_hash(folder: str | Path) -> str:
    """Return the SHA-256 of the weights that was recorded with the model; "" if there is none.

    Raises:
        InputError: The settings are missing or damaged.
    """
    return str(_read_settings(_file_of(Path(folder), CONFIG)).get(WEIGHTS_HASH, ""))


def read_model(folder: str | Path) -> tuple[Model, ModelSettings, DataConfig, dict[str, Any], Calibration | None]:
    """Read a model folder.

    Returns:
        The model (float32, on the CPU, in evaluation mode), its settings, those of its data, the provenance,
        and the calibration or None.

    Raises:
        InputError: The folder or a file is missing, damaged or from a newer version, a setting is unknown, or the
            weights do not fit the settings.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(folder, "no such folder", "Give the folder of a trained model")
    config, weights_file = _file_of(folder, CONFIG), _file_of(folder, WEIGHTS)
    settings = _read_settings(config)
    values = settings.pop("model")
    name = str(values.get("name", "ddpm"))
    values = own_settings(name, values)
    model_config = _to_dataclass(settings_class(name), values, config, "model")
    data_config = _to_dataclass(DataConfig, settings.pop("data"), config, "data")
    model = MODELS[model_config.name](model_config)
    weights = _read_weights(weights_file)
    _check_weights(weights, model.state_dict(), weights_file)
    model.load_state_dict(weights)
    model.requires_grad_(False).eval()
    return model, model_config, data_config, settings, _read_calibration(folder / CALIBRATION)


def read_health(folder: str | Path) -> HealthyMoments | None:
    """Read the healthy statistics of a model; None if its calibration has none.

    Raises:
        InputError: The file is damaged.
    """
    path = Path(folder) / HEALTH
    return HealthyMoments.load(path) if path.is_file() else None


def _file_of(folder: Path, name: str) -> Path:
    """Return a file that every model folder holds, or raise InputError."""
    path = folder / name
    if not path.is_file():
        raise InputError(path, "no such file", f"A model folder holds {CONFIG} and {WEIGHTS}")
    return path


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(path, "is not readable YAML", "Copy or download the model again") from error
    groups = [settings.get(name) for name in ("model", "data")] if isinstance(settings, dict) else []
    if not groups or not all(isinstance(group, dict) for group in groups):
        raise InputError(path, "lacks the settings 'model' and 'data'", "It is no model of brainuad")
    written = settings.get("format", FORMAT)
    if not isinstance(written, int) or written > FORMAT:
        fault = f"has format {written!r}; this version reads up to {FORMAT}"
        raise InputError(path, fault, "Update brainuad")
    return dict(settings)


def _to_dataclass(kind: type[T], values: dict[str, Any], path: Path, group: str) -> T:
    # An interpolation could put values of this machine's environment into a message.
    if "${" in str(values):
        raise InputError(path, f"has an interpolation in its {group} settings", "Write the value itself")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(kind), OmegaConf.create(values))
        result = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        setting = ".".join(filter(None, (group, error.full_key)))
        fault = f"has a setting that cannot be used, {setting}: {str(error).splitlines()[0]}"
        raise InputError(path, fault, "Update brainuad") from error
    assert isinstance(result, kind)
    lists_to_tuples(result)
    return result


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        weights: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        fault = f"is not a safetensors file ({error})"
        raise InputError(path, fault, "Copy or download the model again") from error
    found, of_others = {}, {name + SCALES for name in weights}
    for name, value in weights.items():
        scales = weights.get(name + SCALES)
        if scales is not None:
            if value.dtype != torch.int8 or scales.shape != value.shape[:1] or scales.dtype != torch.float32:
                fault = f"{name!r} and its scales do not fit together"
                raise InputError(path, fault, "Copy or download the model again")
            found[name] = torch.from_numpy(from_8_bits(value.numpy(), scales.numpy()))
        elif name not in of_others:
            found[name] = value.float() if value.is_floating_point() else value
    return found


def _check_weights(weights: dict[str, Tensor], expected: dict[str, Tensor], path: Path) -> None:
    remedy = f"Weights and {CONFIG} must come from one model"
    for name in sorted(expected.keys() ^ weights.keys()):
        missing = name in expected
        fault = f"holds no {name!r}" if missing else f"holds {name!r}, which the settings do not have"
        raise InputError(path, fault, remedy)
    for name, value in weights.items():
        if value.shape != expected[name].shape:
            fault = f"{name!r} has shape {tuple(value.shape)}, the settings say {tuple(expected[name].shape)}"
            raise InputError(path, fault, remedy)
        if value.is_floating_point() != expected[name].is_floating_point():
            raise InputError(path, f"{name!r} is {value.dtype}, and its scales are missing", remedy)
        if not value.isfinite().all():
            remedy = "Train again, or take another checkpoint"
            raise InputError(path, f"{name!r} holds NaN or infinite values", remedy)


def _read_calibration(path: Path) -> Calibration | None:
    if not path.is_file():
        return None
    remedy = "Calibrate again, or remove it"
    try:
        values = read_json(path)
    except (OSError, ValueError) as error:
        raise InputError(path, "is not readable JSON", remedy) from error
    try:
        return Calibration.from_dict(values)
    except ValueError as error:
        raise InputError(path, str(error), remedy) from error


def to_8_bits(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round weights to 255 levels a channel, symmetric around 0.

    Args:
        values: ``(C, ...)`` float32; the first axis is that of output channels.

    Returns:
        Levels from -127 to 127 as int8, and ``(C,)`` float32 scales, whose product is off by half a scale at most.

    Raises:
        ValueError: A weight is NaN or infinite.
    """
    if not np.isfinite(values).all():
        raise ValueError("weights are NaN or infinite")
    largest = np.abs(values).reshape(len(values), -1).max(axis=1, initial=0)
    scales = np.where(largest > 0, largest / 127, 1).astype("<f4")
    scales[scales == 0] = 1  # a channel of subnormal numbers
    levels = np.rint(values / _along_channels(scales, values.ndim))
    return np.clip(levels, -127, 127).astype(np.int8), scales


def from_8_bits(levels: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Return the float32 weights of `to_8_bits`, rounded."""
    return levels.astype(np.float32) * _along_channels(scales, levels.ndim)


def _along_channels(scales: np.ndarray, ndim: int) -> np.ndarray:
    return scales.reshape(-1, *[1] * (ndim - 1))
