"""What a model makes of a whole volume: its axial slices go through the network batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from brainuad.models.base import Inference, Model, batch_of, slabs_of
from brainuad.scoring._arrays import as_volume, mask_on


def device_of(model: Model) -> torch.device:
    """Return the device of a model; one without weights computes on the CPU."""
    held = chain(model.parameters(), model.buffers())
    return next((tensor.device for tensor in held), torch.device("cpu"))


def infer(
    model: Model, image: Any, mask: Any | None, seed: int, *, draws: int = 1, precision: str = "float32"
) -> Inference:
    """Return a model's reconstructions and its own map of a volume; no second reconstruction.

    Args:
        model: The model.
        image: ``(X, Y, Z)`` in [0, 1]; array or tensor.
        mask: ``(X, Y, Z)`` brain mask; None computes no map.
        seed: Seeds the noise, which is the same on every device.
        draws: Reconstructions from independent noise. The model's own map is the mean over them.
        precision: What the network computes in, "float32" or "bfloat16".

    Returns:
        Reconstructions ``(draws, X, Y, Z)`` and map ``(X, Y, Z)``, float32 on the CPU, each None if the model
        makes none.

    Raises:
        ValueError: ``image`` or ``mask`` is not (X, Y, Z), or ``draws`` is not positive.
    """
    volume = torch.as_tensor(image, dtype=torch.float32)
    if volume.ndim != 3 or draws < 1:
        raise ValueError(f"expected (X, Y, Z) and draws > 0, got {tuple(volume.shape)} and {draws}")
    device = device_of(model)
    slabs = slabs_of(volume, model.neighbours).to(device)
    brain = None
    if mask is not None and model.has_map:
        brain = slabs_of(mask_on(volume, mask), model.neighbours).to(device)
    generator = torch.Generator().manual_seed(seed)
    with _inference(device, precision):
        made = [_once(model, slabs, brain, generator) for _ in range(draws)]
    stacks = [each.reconstruction for each in made if each.reconstruction is not None]
    maps = [each.anomaly for each in made if each.anomaly is not None]
    return Inference(
        torch.stack(stacks).float().cpu() if stacks else None, torch.stack(maps).float().mean(0).cpu() if maps else None
    )


def infer_second(model: Model, image: Any, seed: int, *, precision: str = "float32") -> Tensor:
    """Return a model's second reconstruction of a volume, ``(X, Y, Z)`` float32 on the CPU; arguments as of `infer`.

    Raises:
        ValueError: ``image`` is not (X, Y, Z).
    """
    device = device_of(model)
    slabs = slabs_of(as_volume(image, "image"), model.neighbours).to(device)
    generator = torch.Generator().manual_seed(seed)
    with _inference(device, precision):
        made = [model.reconstruct_second(batch, generator) for batch in slabs.split(_size(model, slabs))]
    return _stacked(made).float().cpu()


@contextmanager
def _inference(device: torch.device, precision: str) -> Iterator[None]:
    """Compute without gradients, the network's products in ``precision``."""
    reduced = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
    with torch.inference_mode(), reduced:
        yield


def _size(model: Model, slabs: Tensor) -> int:
    """Return the slabs that the model is given at a time."""
    return max(1, len(slabs)) if model.whole_volumes else batch_of(slabs)


def _once(model: Model, slabs: Tensor, brain: Tensor | None, generator: torch.Generator) -> Inference:
    """Return reconstruction and map ``(X, Y, Z)`` of all slabs of a volume."""
    size = _size(model, slabs)
    if brain is not None:
        pairs = zip(slabs.split(size), brain.split(size), strict=True)
        parts = [model.infer(*pair, generator) for pair in pairs]
    elif model.reconstructs:
        parts = [Inference(model.reconstruct(batch, generator), None) for batch in slabs.split(size)]
    else:
        parts = []
    made = [part.reconstruction for part in parts if part.reconstruction is not None]
    maps = [part.anomaly for part in parts if part.anomaly is not None]
    return Inference(_stacked(made) if made else None, _stacked(maps) if maps else None)


def _stacked(slices: list[Tensor]) -> Tensor:
    """Return the volume ``(X, Y, Z)`` of batches of slices (B, 1, X, Y)."""
    return torch.cat(slices)[:, 0].permute(1, 2, 0)
