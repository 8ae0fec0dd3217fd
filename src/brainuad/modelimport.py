"""Checkpoints of the published release as model folders. Nothing in a checkpoint is executed."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from brainuad.config import DataConfig
from brainuad.errors import InputError
from brainuad.files import atomic_folder, sha256
from brainuad.modelfile import write_model
from brainuad.models import DiffusionModel, load_reference_state_dict
from brainuad.models.diffusion import DiffusionSettings

# What tensors are made of. All else in a checkpoint (settings, callbacks, states of optimisers) is passed over.
_NEEDED = {
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
}


def import_checkpoint(checkpoint: str | Path, folder: str | Path, *, modality: str) -> None:
    """Write a checkpoint of the release's plain DDPM as a model folder, completely or not at all.

    The settings of the network follow from the weights (`load_reference_state_dict`). All other settings are
    those of the published experiment, ``experiment=DDPM/DDPM``.

    Args:
        checkpoint: A ``.ckpt`` of the release, a saved ``state_dict``, or one as ``.safetensors``.
        folder: New folder for the model.
        modality: The contrast that it was trained on, which the weights do not tell.

    Raises:
        InputError: The file is no such checkpoint, or the folder is there or cannot be written to.
    """
    path = Path(checkpoint)
    try:
        unet = load_reference_state_dict(_state_dict(path))
    except InputError as error:
        if error.subject == str(path):
            raise
        raise InputError(path, f"{error.subject}: {error.fault}", error.remedy) from error
    assert isinstance(unet.config, DiffusionSettings)
    model = DiffusionModel(unet.config)
    model.unet.load_state_dict(unet.state_dict())
    origin = {"imported_from": path.name, "imported_sha256": sha256(path)}
    with atomic_folder(Path(folder)) as temporary:
        write_model(temporary, model, unet.config, DataConfig(mode=modality), provenance=origin)


def _state_dict(path: Path) -> dict[str, Tensor]:
    """Return the weights in a checkpoint by name."""
    if not path.is_file():
        raise InputError(path, "no such file", "Give a checkpoint of the release")
    found = _read(path)
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    items = found.items() if isinstance(found, Mapping) else ()
    weights = {str(name): value for name, value in items if isinstance(value, Tensor)}
    if not weights:
        raise InputError(path, "holds no weights", "Give a checkpoint of the release")
    return weights


def _read(path: Path) -> Any:
    remedy = "Give a checkpoint as Lightning or torch.save writes it since PyTorch 1.6, or .safetensors"
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with path.open("rb") as file:
            if file.read(4) != b"PK\x03\x04":  # what else torch.load reads are old formats and programs
                raise InputError(path, "is no checkpoint that can be read", remedy)
        if any(name.endswith("constants.pkl") for name in torch._C.PyTorchFileReader(str(path)).get_all_records()):
            raise InputError(path, "is a TorchScript program, and programs are not run", remedy)
        reader = SimpleNamespace(__name__="pickle", Unpickler=_Unpickler, UnpicklingError=pickle.UnpicklingError)
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=reader)
    except (
        OSError, SafetensorError, pickle.UnpicklingError, RuntimeError, LookupError, TypeError,
        ValueError, AttributeError, EOFError,
    ) as error:  # fmt: skip
        raise InputError(path, f"is no checkpoint that can be read ({error})", remedy) from error


class _Inert:
    """What stands in a checkpoint in place of an object that is not needed: it takes anything and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> _Inert:
        """Return one of any arguments."""
        return super().__new__(cls)

    def __call__(self, *_: Any, **__: Any) -> _Inert:
        """Return itself, and forget what it is given."""
        return self

    __setstate__ = __setitem__ = append = add = extend = __call__


class _Unpickler(pickle.Unpickler):
    """Makes tensors and containers only: no other class or function of a file is looked up, let alone called."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what tensors are made of, and `_Inert` for all else."""
        if (module, name) in _NEEDED:
            return super().find_class(module, name)
        found = vars(torch).get(name) if module == "torch" else None
        return found if isinstance(found, torch.dtype) else _Inert
