"""Measuring the stages, and the table of what was found."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from bench.measure import describe_machine, interleaved, machine_rates, peak_memory
from bench.stages import ENSEMBLE, ON_PROCESSOR, SCORING, STAGES, Case, Stage
from brainuad._version import __version__
from brainuad.detector import Detector
from brainuad.errors import InputError

_OURS, _PLAIN = "ours", "plain"


@dataclass
class Timing:
    """What was measured of one stage.

    Attributes:
        stage: Its name.
        part_of: Stage whose time holds this one's, or "".
        seconds: Median of the repeats.
        share: Of the sum of all stages that are no part of another, 0 .. 1.
        mib: How much memory grew at most, or None where the system does not tell.
        volumes: The same in float32 volumes of the grid.
        plain_seconds: Of the plain implementation, or None without one.
        plain_mib: Its memory.
        ratio: ``plain_seconds / seconds``.
        floor_seconds: The larger of operations over the measured peak, and bytes over the measured bandwidth.
        apart: Largest difference of the two results, or None where they are not to be equal.
        others: Seconds of other libraries.
    """

    stage: str
    part_of: str
    seconds: float
    share: float
    mib: float | None
    volumes: float | None
    plain_seconds: float | None = None
    plain_mib: float | None = None
    ratio: float | None = None
    floor_seconds: float = 0.0
    apart: float | None = None
    others: dict[str, float] = field(default_factory=dict)


@dataclass
class Bench:
    """A whole benchmark.

    Attributes:
        model: Name, fingerprint and precision of the model.
        machine: Processor, threads, versions.
        rates: Measured peak and bandwidth of the model's device.
        repeats: How often everything was run.
        sizes: Timings by size, "96x96x50".
    """

    model: dict[str, str]
    machine: dict[str, Any]
    rates: dict[str, float]
    repeats: int
    sizes: dict[str, list[Timing]]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, with the ratios of all stages together."""
        sizes = {
            size: {"stages": [asdict(timing) for timing in timings], "sums": sums(timings)}
            for size, timings in self.sizes.items()
        }
        about = {"brainuad": __version__, "model": self.model, "machine": self.machine, "rates": self.rates}
        return {**about, "repeats": self.repeats, "sizes": sizes}


def run_bench(
    detector: Detector,
    sizes: Sequence[tuple[int, int, int]] = (),
    stages: Sequence[str] = STAGES,
    *,
    repeats: int = 3,
    threads: int | None = None,
    report: Callable[[str], None] = lambda what: None,
) -> Bench:
    """Time stages of a real scan at given sizes, each in turn with its plain counterpart.

    Args:
        detector: The model.
        sizes: Voxels of the grid; the model's own by default.
        stages: Which of ``STAGES``.
        repeats: How often; the median counts.
        threads: Of PyTorch and ITK; all cores by default.
        report: Called with each stage before it is measured.

    Raises:
        InputError: A stage is unknown, or a size too small.
    """
    unknown = [name for name in stages if name not in STAGES]
    if unknown:
        raise InputError(f"stage {unknown[0]!r}", "is unknown", f"There are: {', '.join(STAGES)}")
    if not sizes:
        config = detector.data_config
        x, y, z = (round(length / config.rescaleFactor) for length in config.imageDim)
        sizes = [(x, y, z)]
    for size in sizes:
        if min(size) < 16:
            raise InputError("size", f"{_name(size)} is too small", "Give at least 16 voxels along every axis")
    before = torch.get_num_threads(), sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    if threads:
        torch.set_num_threads(threads)
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    try:
        device = detector.device
        rates = {place: machine_rates(place) for place in {device, torch.device("cpu")}}
        model = {
            "name": detector.name,
            "fingerprint": detector.fingerprint,
            "precision": detector.precision + " compiled" * detector.compiled,
        }
        bench = Bench(model, describe_machine(device), rates[device], repeats, {})
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            for size in sizes:
                case = Case(detector, size, Path(folder))
                wanted = [name for name in STAGES if name in stages]
                timings = []
                for name in wanted:
                    report(f"{_name(size)} {name}")
                    stage = case.stage(name)
                    if stage is not None:
                        place = torch.device("cpu") if name in ON_PROCESSOR else device
                        timings.append(_time(stage, case.voxels, place, repeats, rates[place]))
                total = sum(timing.seconds for timing in timings if not _inside(timing, timings))
                for timing in timings:
                    timing.share = timing.seconds / total
                bench.sizes[_name(size)] = timings
        return bench
    finally:
        torch.set_num_threads(before[0])
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before[1])


def _name(size: Sequence[int]) -> str:
    return "x".join(map(str, size))


def _inside(timing: Timing, timings: Sequence[Timing]) -> bool:
    """Whether a stage's time is in that of another one that was measured."""
    return any(timing.part_of == other.stage for other in timings)


def _time(stage: Stage, voxels: int, device: torch.device, repeats: int, rates: Mapping[str, float]) -> Timing:
    functions = {_OURS: stage.ours, **({_PLAIN: stage.plain} if stage.plain else {}), **stage.others}
    measured = {}
    for name, function in functions.items():
        function()  # what is loaded or set up once is not the stage's
        measured[name] = peak_memory(function, device)
    (result, mib), plain = measured[_OURS], measured.get(_PLAIN)
    apart = apart_by(result, plain[0]) if plain and stage.comparable else None
    plain_mib = plain[1] if plain else None
    del result, plain, measured
    seconds = interleaved(functions, repeats, device)
    ours, theirs = seconds.pop(_OURS), seconds.pop(_PLAIN, None)
    peak = rates[f"{stage.precision}_gflop_per_second"]
    floor = max(stage.flops / peak, stage.bytes / rates["gb_per_second"]) / 1e9
    volumes = None if mib is None else mib * 2**20 / (4 * voxels)
    ratio = None if theirs is None else theirs / ours
    return Timing(stage.name, stage.part_of, ours, 0.0, mib, volumes, theirs, plain_mib, ratio, floor, apart, seconds)


def apart_by(one: Any, other: Any) -> float:
    """Return the largest difference between two results of one structure; infinity where they differ in kind.

    Args:
        one: Tensors, arrays or numbers, or lists or dicts of them; NaN equals NaN.
        other: The same.
    """
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return float("inf")
        return max(apart_by(value, other[name]) for name, value in one.items())
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return float("inf")
        return max(apart_by(*pair) for pair in zip(one, other, strict=True))
    first, second = (np.asarray(torch.as_tensor(value).cpu(), dtype=np.float64) for value in (one, other))
    if first.shape != second.shape or (np.isnan(first) != np.isnan(second)).any():
        return float("inf")
    difference = np.abs(first - second)
    return float(difference.max(initial=0.0, where=~np.isnan(difference)))


def sums(timings: Sequence[Timing]) -> dict[str, dict[str, float | None]]:
    """Return seconds and ratio of all stages, and of those from the map to the figures, where all were measured.

    The ratio is over the stages that have a plain counterpart.
    """
    groups = {"all stages": [timing for timing in timings if not _inside(timing, timings)]}
    scoring = [timing for timing in timings if timing.stage in SCORING]
    if len(scoring) == len(SCORING):
        groups[f"{ENSEMBLE} to metrics"] = scoring
    found = {}
    for name, members in groups.items():
        compared = [timing for timing in members if timing.plain_seconds is not None]
        plain = sum(timing.plain_seconds or 0.0 for timing in compared)
        ours = sum(timing.seconds for timing in compared)
        found[name] = {
            "seconds": sum(timing.seconds for timing in members),
            "plain_seconds": plain if compared else None,
            "ratio": plain / ours if compared else None,
        }
    return found


def table(bench: Bench) -> str:
    """Return a benchmark as text, one table a size."""
    machine, rates = bench.machine, bench.rates
    lines = [
        f"brainuad {__version__}, {bench.model['name']} in {bench.model['precision']}, {machine['processor']}, "
        f"{machine['threads']} of "
        f"{machine['cores']} cores, {machine['device']}, torch {machine['versions']['torch']}",
        f"peak {rates['float32_gflop_per_second']:g} GFLOP/s in float32, "
        f"{rates['bfloat16_gflop_per_second']:g} in bfloat16, bandwidth {rates['gb_per_second']:g} GB/s, "
        f"medians of {bench.repeats}",
    ]
    heads = ("stage", "ms", "share", "MiB", "volumes", "plain ms", "plain MiB", "ratio", "floor ms", "apart")
    for size, timings in bench.sizes.items():
        rows: list[tuple[str, ...]] = [heads]
        for timing in timings:
            inside = _inside(timing, timings)
            rows.append(
                (
                    f"{'  of it ' if inside else ''}{timing.stage}",
                    _number(timing.seconds, 1e3),
                    "" if inside else f"{timing.share:.1%}",
                    _number(timing.mib),
                    _number(timing.volumes),
                    _number(timing.plain_seconds, 1e3),
                    _number(timing.plain_mib),
                    _ratio(timing.ratio),
                    _number(timing.floor_seconds or None, 1e3),
                    "" if timing.apart is None else f"{timing.apart:.0e}",
                )
            )
            rows += [
                (f"  by {name}", "", "", "", "", _number(value, 1e3), "", _ratio(value / timing.seconds), "", "")
                for name, value in timing.others.items()
            ]
        rows += [
            (
                name,
                _number(found["seconds"], 1e3),
                *[""] * 3,
                _number(found["plain_seconds"], 1e3),
                "",
                _ratio(found["ratio"]),
                "",
                "",
            )
            for name, found in sums(timings).items()
        ]
        lines += ["", f"{size} voxels", *_aligned(rows)]
    return "\n".join(lines)


def _number(value: float | None, scale: float = 1.0) -> str:
    if value is None:
        return ""
    value *= scale
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}x"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
