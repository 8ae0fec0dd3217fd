"""Time, memory and what the machine could do at best."""

from __future__ import annotations

import ctypes
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

_LIBRARIES = ("numpy", "scipy", "scikit-learn", "simpleitk", "torch", "scikit-image", "torchmetrics")
_MIB = 2**20


def interleaved(
    functions: Mapping[str, Callable[[], Any]],
    repeats: int,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Return the median seconds of each function, all taking turns, in the reverse order every other time."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(repeats):
        for name in list(functions)[:: 1 if turn % 2 == 0 else -1]:
            synchronise(device)
            start = clock()
            functions[name]()
            synchronise(device)
            seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def synchronise(device: torch.device) -> None:
    """Wait until a device has done what it was told to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(function: Callable[[], Any], device: torch.device) -> tuple[Any, float | None]:
    """Return a function's result, and by how many MiB memory grew while it ran.

    On CUDA that is the device's memory, else the process's resident memory, which Linux alone can tell; None
    elsewhere. What the function returns counts too.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = function()
        torch.cuda.synchronize(device)
        return result, (torch.cuda.max_memory_allocated(device) - before) / _MIB
    try:
        # Memory that was freed and not handed back would be used again unseen.
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark to the memory in use
        resident = _resident("VmRSS")
    except (OSError, AttributeError, StopIteration):
        return function(), None
    result = function()
    return result, max(0.0, _resident("VmHWM") - resident)


def _resident(field: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def machine_rates(device: torch.device) -> dict[str, float]:
    """Return the rates floors are computed from: matrix products by precision in GFLOP/s, copying in GB/s.

    On CUDA products of float32 are made as convolutions are, in TF32 where that is allowed.
    """
    size = 8192 if device.type == "cuda" else 1536
    rates = {}
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    try:
        for dtype in (torch.float32, torch.bfloat16):
            left, right = (torch.rand(size, size, device=device).to(dtype) for _ in range(2))
            seconds = fastest(partial(torch.mm, left, right), 8, device)
            name = str(dtype).removeprefix("torch.")
            rates[f"{name}_gflop_per_second"] = round(2 * size**3 / seconds / 1e9, 1)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    source = torch.rand(2**26 if device.type == "cuda" else 2**24, device=device)
    target = torch.empty_like(source)
    copies = fastest(lambda: target.copy_(source), 8, device)
    return {**rates, "gb_per_second": round(2 * source.nbytes / copies / 1e9, 1)}


def fastest(function: Callable[[], Any], repeats: int, device: torch.device) -> float:
    """Return the fewest seconds a function took."""
    seconds = []
    for _ in range(repeats):
        synchronise(device)
        start = time.perf_counter()
        function()
        synchronise(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return what the figures depend on: processor, cores, threads, device, versions."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "versions": versions,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
