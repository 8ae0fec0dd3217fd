"""Histogram of the scans' scores beside those of healthy scans, as an inline drawing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from brainuad.report.svg import inline_svg

_BINS = 20


def histogram(scores: Sequence[tuple[str, float]], healthy: Sequence[float]) -> str:
    """Draw both distributions on one axis; return an ``<svg>`` element, "" if no scan has a score.

    Its colours are those of ``style.css``. Every bar and scan has a title, which shows under the pointer.

    Args:
        scores: Names and scores of the scans.
        healthy: Scores of the healthy scans of the calibration; may be empty.
    """
    from matplotlib.figure import Figure  # slow to import
    from matplotlib.ticker import PercentFormatter

    values = np.array([value for _, value in scores])
    if not len(values):
        return ""
    everything = np.concatenate([values, healthy])
    margin = 0.05 * max(float(np.ptp(everything)), 1e-3)
    edges = np.linspace(everything.min() - margin, everything.max() + margin, _BINS + 1)
    figure = Figure(figsize=(7.2, 2))
    axis = figure.subplots()
    titles = {}
    for name, of in (("healthy", np.array(healthy)), ("scans", values)):
        counts = np.histogram(of, edges)[0]
        for place in np.flatnonzero(counts):
            left, right = edges[place : place + 2]
            (bar,) = axis.bar(left, counts[place] / len(of), right - left, align="edge", gid=f"{name}-{place}")
            what = "healthy scans" if name == "healthy" else "scans"
            titles[bar.get_gid()] = f"{counts[place]} {what} from {left:.3f} to {right:.3f}"
    for number, (name, value) in enumerate(scores):
        axis.plot(
            [value, value], [-0.03, -0.09], transform=axis.get_xaxis_transform(), clip_on=False, gid=f"mark-{number}"
        )
        titles[f"mark-{number}"] = f"{name}: {value:.4f}"
    axis.set(xlim=edges[[0, -1]], xlabel="scan score (mean of the anomaly map over the brain)")
    axis.locator_params(nbins=5)
    axis.tick_params(axis="x", length=0, pad=9)
    axis.tick_params(axis="y", length=0)
    axis.yaxis.set_major_formatter(PercentFormatter(1, 0, " %"))
    axis.spines[["left", "top", "right"]].set_visible(False)
    axis.spines["bottom"].set_gid("histogram-floor")
    figure.subplots_adjust(left=0.07, right=0.97, top=0.94, bottom=0.29)
    summary = f"Scores of {len(values)} scans, {values.min():.3f} to {values.max():.3f}"
    if len(healthy):
        summary += f", beside {len(healthy)} healthy scans, {min(healthy):.3f} to {max(healthy):.3f}"
    return inline_svg(figure, titles, f"{summary}.")
