"""Checkpoints of the release become models, and nothing in them is executed."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from brainuad.detector import Detector
from brainuad.errors import InputError
from brainuad.modelimport import import_checkpoint

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def weights() -> Weights:
    """The small network that the release's code made."""
    with np.load(Path(__file__).parent / "reference" / "unet_small.npz") as arrays:
        names = [name for name in arrays if name.startswith("state_dict/")]
        return {name.removeprefix("state_dict/"): torch.from_numpy(arrays[name]) for name in names}


class Settings(dict[str, Any]):
    """Like the settings that Lightning stores with the weights: a class of another package, with a state."""

    def __init__(self) -> None:
        super().__init__(lr=1e-4)
        self.parent, self.flags = [self], {"a"}


class Hostile:
    """Runs a command when it is unpickled as usual."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


def checkpoint(weights: Weights, path: Path, **more: Any) -> Path:
    torch.save({"state_dict": weights, "epoch": 3, "hyper_parameters": Settings(), **more}, path)
    return path


def test_it_computes_what_the_release_computes(weights: Weights, tmp_path: Path) -> None:
    import_checkpoint(checkpoint(weights, tmp_path / "last.ckpt"), tmp_path / "model", modality="t2")
    detector = Detector.load(tmp_path / "model")
    assert (detector.modality, detector.model_config.name) == ("t2", "ddpm")
    assert tuple(detector.data_config.imageDim) == (192, 192, 100)
    assert detector.provenance["imported_from"] == "last.ckpt"
    with np.load(Path(__file__).parent / "reference" / "unet_small.npz") as arrays, torch.no_grad():
        x, t, y = (torch.from_numpy(arrays[name]) for name in ("x", "t", "y"))
        torch.testing.assert_close(detector.model.unet(x, t), y, rtol=0, atol=1e-5)


def test_nothing_in_a_checkpoint_is_executed(weights: Weights, tmp_path: Path) -> None:
    path = checkpoint(weights, tmp_path / "hostile.ckpt", callbacks=[Hostile(tmp_path / "trace")])
    import_checkpoint(path, tmp_path / "model", modality="t1")
    assert not (tmp_path / "trace").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "trace").exists(), "the checkpoint is not hostile"


def test_weights_alone_are_enough(weights: Weights, tmp_path: Path) -> None:
    torch.save(weights, tmp_path / "weights.pt")
    save_file({name: value.contiguous() for name, value in weights.items()}, tmp_path / "weights.safetensors")
    models = []
    for name in ("weights.pt", "weights.safetensors"):
        import_checkpoint(tmp_path / name, tmp_path / f"{name}.model", modality="t1")
        models.append(Detector.load(tmp_path / f"{name}.model").model.state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def program(path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(path)


def damaged(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00(X")
        archive.writestr("archive/version", b"3")


@pytest.mark.parametrize(
    ("write", "fault"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.write_bytes(b"text"), "is no checkpoint that can be read"),
        (lambda path: torch.save({"step": 3}, path), "holds no weights"),
        (lambda path: torch.save(torch.zeros(3), path), "holds no weights"),
        (lambda path: torch.save({"w": torch.zeros(3, 3)}, path), "the checkpoint holds no keys of that name"),
        (program, "is a TorchScript program"),
        (damaged, "is no checkpoint that can be read"),
    ],
)
def test_what_is_no_checkpoint_is_one_clear_error(write: Callable[[Path], Any], fault: str, tmp_path: Path) -> None:
    write(tmp_path / "last.ckpt")
    with pytest.raises(InputError, match=fault):
        import_checkpoint(tmp_path / "last.ckpt", tmp_path / "model", modality="t1")
    assert not (tmp_path / "model").exists()
