"""Histogram of the scans' scores beside those of healthy scans, as an inline drawing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WIDTH = 720
_LEFT, _RIGHT, _TOP, _FLOOR = 44, 24, 12, 140


@dataclass(frozen=True)
class Bar:
    """One rectangle, in the drawing's units, and its description."""

    x: float
    y: float
    width: float
    height: float
    text: str


@dataclass(frozen=True)
class Histogram:
    """Contents of the template ``histogram.svg``.

    Attributes:
        healthy: Bars of the healthy scans of the calibration.
        scans: Bars of the scans scored.
        marks: One line per scan: position, and name with score.
        ticks: Position and label along the axis of scores.
        top: Percentage of scans at the top of the drawing.
        summary: The drawing in words.
    """

    healthy: list[Bar]
    scans: list[Bar]
    marks: list[tuple[float, str]]
    ticks: list[tuple[float, str]]
    top: int
    summary: str


def round_ticks(low: float, high: float) -> list[float]:
    """Return round numbers from at most ``low`` to at least ``high``, about five."""
    if low == high:
        low, high = low - 0.5, high + 0.5
    reach = high - low
    power = 10.0 ** math.floor(math.log10(reach / 4))
    step = next(step for factor in (1, 2, 5, 10) if reach / (step := factor * power) <= 5)
    indices = np.arange(math.floor(low / step), math.ceil(high / step) + 1)
    return [float(f"{index * step:.6g}") for index in indices]


def histogram(scores: Sequence[tuple[str, float]], healthy: Sequence[float]) -> Histogram | None:
    """Lay out both distributions on one axis; None if no scan has a score.

    Args:
        scores: Names and scores of the scans.
        healthy: Scores of the healthy scans of the calibration; may be empty.
    """
    values = np.array([value for _, value in scores])
    if not len(values):
        return None
    everything = np.concatenate([values, healthy])
    span = max(float(np.ptp(everything)), 1e-3)
    low, high = float(everything.min()) - 0.05 * span, float(everything.max()) + 0.05 * span
    edges = np.linspace(low, high, 21)

    def shares(of: np.ndarray | Sequence[float]) -> np.ndarray:
        return np.histogram(of, edges)[0] / max(len(of), 1) * 100

    top = int(np.ceil(max(shares(values).max(), shares(healthy).max()) / 10) * 10)

    def x(value: float) -> float:
        return round(_LEFT + (value - low) / (high - low) * (WIDTH - _LEFT - _RIGHT), 1)

    def bars(of: np.ndarray | Sequence[float], what: str) -> list[Bar]:
        counts = np.histogram(of, edges)[0]
        drawn = []
        for count, share, left, right in zip(counts, shares(of), edges[:-1], edges[1:], strict=True):
            if count:
                height = round(float(share) / top * (_FLOOR - _TOP), 1)
                text = f"{count} {what} from {left:.3f} to {right:.3f}"
                drawn.append(Bar(x(left), round(_FLOOR - height, 1), round(x(right) - x(left), 1), height, text))
        return drawn

    summary = f"Scores of {len(values)} scans, {values.min():.3f} to {values.max():.3f}"
    if len(healthy):
        summary += f", beside {len(healthy)} healthy scans, {min(healthy):.3f} to {max(healthy):.3f}"
    return Histogram(
        healthy=bars(healthy, "healthy scans"),
        scans=bars(values, "scans"),
        marks=[(x(value), f"{name}: {value:.4f}") for name, value in scores],
        ticks=[(x(value), f"{value:g}") for value in round_ticks(low, high) if low <= value <= high],
        top=top,
        summary=summary + ".",
    )
