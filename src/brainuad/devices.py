"""Choose device and precision, move data, and compile networks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from brainuad.errors import DeviceError, InputError

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "float32", "bfloat16")


def resolve_device(name: str) -> torch.device:
    """Return a device by name; "auto" is CUDA, else MPS, else the CPU.

    Raises:
        InputError: The name is unknown, or there is no such device.
    """
    counts = {
        "cpu": 1,
        # with a driver too old for PyTorch devices are counted, but none is available
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if counts[kind])
    try:
        device = torch.device(name)
        count = counts[device.type]
    except (RuntimeError, KeyError) as error:
        raise InputError("device", f"{name!r} is unknown", f"Choose one of {', '.join(DEVICES)}") from error
    if (device.index or 0) >= count:
        raise InputError("device", f"{name!r} is not available", "Choose auto or cpu")
    return device


def resolve_precision(name: str, device: torch.device) -> str:
    """Return a precision by name; "auto" is bfloat16 where the device computes in it natively, else float32.

    Raises:
        InputError: The name is unknown.
    """
    if name not in PRECISIONS:
        raise InputError("precision", f"{name!r} is unknown", f"Choose one of {', '.join(PRECISIONS)}")
    if name != "auto":
        return name
    native = {
        "cuda": lambda: torch.cuda.get_device_capability(device) >= (8, 0),
        # oneDNN emulates it elsewhere, which is slower than float32
        "cpu": lambda: torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported(),
    }
    return "bfloat16" if device.type in native and native[device.type]() else "float32"


def upload(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Return a tensor on a device. Pinned memory lets the copy to CUDA run without waiting for the device."""
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@contextmanager
def device_told_from_scan(device: torch.device) -> Iterator[None]:
    """Distinguish a broken device from a scan that is too large for it; PyTorch reports both alike.

    Raises:
        DeviceError: A ``RuntimeError`` was raised, and the device cannot add two numbers any more.
    """
    try:
        yield
    except RuntimeError as error:
        try:
            torch.zeros(1, device=device).add(1).cpu()
        except torch.OutOfMemoryError:
            raise error from None
        except RuntimeError:
            raise DeviceError(str(device), error) from error
        raise


def compile_networks(model: nn.Module, device: torch.device) -> None:
    """Compile a model's networks at their first call, which takes a while for each shape of slices.

    This changes the model in place, so the names of weights stay.

    Raises:
        InputError: There is no working compiler: Triton and C on CUDA, C++ elsewhere.
    """
    try:  # tried on a minimal network first: a failure during scoring would be blamed on a scan
        torch.compile(lambda values: values + 1)(torch.zeros(1, device=device))
    except RuntimeError as error:
        reasons = [line for line in str(error).splitlines() if line and not line.startswith("backend=")]
        remedy = "Install a C++ compiler, and Triton for CUDA, or do without compiling"
        raise InputError("compile", reasons[0] if reasons else type(error).__name__, remedy) from error
    _compile_parts(model)


def _compile_parts(model: nn.Module) -> None:
    for part in model.children():
        if type(part).forward is nn.Module.forward:  # it only holds networks
            _compile_parts(part)
        else:
            part.compile(dynamic=False)
