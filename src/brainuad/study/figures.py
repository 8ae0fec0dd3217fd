"""Figures of an evaluation, drawn from its stored tables and curves."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from brainuad.data.loading import PreparedCase
from brainuad.data.regions import SRI24_TO_MNI
from brainuad.files import atomic_path, write_bytes
from brainuad.record import FIRST_COLOUR, FULL_COLOUR, SCALE_MEANING
from brainuad.report.montage import Overlay, drawable, mni_height, montage, slice_number
from brainuad.study.protocol import BASELINES, HEALTHY, ORACLE, VALIDATION, healthy_name
from brainuad.study.tables import wide

MOST_PANELS = 6  # scores a row of Dice against threshold
COLOURS = healthy_name(FIRST_COLOUR), healthy_name(FULL_COLOUR)  # thresholds of the colours
GREYS = ("#bbbbbb", "#888888", "#555555", "#000000")
BLUES = ("#9ecae1", "#4292c6", "#08519c", "#08306b")  # from the most to the fewest healthy voxels
_LOOKS = {name: {"color": blue, "ls": "--"} for name, blue in zip(HEALTHY, BLUES, strict=True)}
_LOOKS[VALIDATION] = {"color": "#d62728", "ls": "-"}
Row = Mapping[str, Any]


def draw_figures(folder: Path, table: pd.DataFrame, curves: Row, summary: Row) -> list[Path]:
    """Write the figures of all sets with lesions from the tidy table, ``curves.json`` and ``summary.json``.

    Return their paths.
    """
    sets = list(curves)
    if not sets:
        return []
    scores = list(summary["scores"])
    colours = _colours(scores)
    precision_recall, froc = (grid(4.2 * len(sets) + 1.8, 3.9, 1, len(sets)) for _ in range(2))
    for name, (_, axes) in (("precision_recall", precision_recall), ("froc", froc)):
        for axis, dataset in zip(axes[0], sets, strict=True):
            for score in scores:
                if name in curves[dataset].get(score, {}):
                    _DRAW[name](axis, curves[dataset][score][name], score, colours[score])
            axis.set_title(drawable(dataset), fontsize=10)
            axis.grid(alpha=0.25)
    paths = [save(precision_recall[0], folder / "precision_recall.png")]
    if any(axis.lines for axis in froc[1][0]):
        paths.append(save(froc[0], folder / "froc.png"))
    test = wide(table, split="test")
    paths.append(save(_violins(test, sets, scores, colours), folder / "per_case.png"))
    paths.append(save(_dice_against_threshold(curves, summary, test), folder / "dice_threshold.png"))
    return paths


def draw_montage(
    prepared: PreparedCase,
    reconstruction: np.ndarray | None,
    overlays: Sequence[Overlay],
    path: Path,
    title: str,
    *,
    in_atlas: bool,
) -> None:
    """Draw one case with maps, on colour scales calibrated on healthy scans.

    Args:
        prepared: The case.
        reconstruction: ``(X, Y, Z)``, or None.
        overlays: The maps.
        path: PNG to write.
        title: Heading.
        in_atlas: The case's affine leads to mm of the atlas, so its slices have a position.
    """
    to_mni = SRI24_TO_MNI @ prepared.affine
    figure = montage(
        prepared.image, reconstruction, overlays, prepared.mask, prepared.lesion,
        title=title, scale_meaning=SCALE_MEANING,
        height=(lambda z: mni_height(to_mni, prepared.image.shape, z)) if in_atlas else slice_number,
    )  # fmt: skip
    write_bytes(path, figure.png())


def telling_cases(test: pd.DataFrame, dataset: str, score: str) -> dict[str, tuple[str, float]]:
    """Return the best, the median and the worst case of a set by average precision, and their values."""
    rows = test[(test["set"] == dataset) & (test["score"] == score)].dropna(subset="average_precision")
    rows = rows.sort_values("average_precision", ascending=False, kind="stable")
    ranks = {"best": 0, "median": (len(rows) - 1) // 2, "worst": len(rows) - 1}
    return {
        name: (str(rows["case"].iloc[rank]), float(rows["average_precision"].iloc[rank]))
        for name, rank in ranks.items()
        if len(rows)
    }


def file_name(*parts: str) -> str:
    """Return a safe file name without suffix."""
    return re.sub(r"[^a-z0-9]+", "-", " ".join(parts).lower()).strip("-")


def _colours(scores: Sequence[str]) -> dict[str, str]:
    ours = [score for score in scores if score not in BASELINES]
    palette = dict(zip(BASELINES, GREYS, strict=True))
    return palette | {score: f"C{index % 10}" for index, score in enumerate(ours)}


def grid(width: float, height: float, rows: int, columns: int, *, sharex: bool = False) -> tuple[Figure, np.ndarray]:
    """Return a figure of a size in inches, and its axes ``(rows, columns)``."""
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, sharex=sharex)


def _draw_precision_recall(axis: Axes, curve: Row, score: str, colour: str) -> None:
    # A step curve: each precision extends from the previous recall, as in average precision.
    axis.step(curve["recall"], curve["precision"], where="pre", label=score, color=colour, lw=1.3)
    if not any(line.get_label() == "chance" for line in axis.lines):
        axis.axhline(curve["chance"], color="k", ls=":", lw=1, label="chance")
    axis.set(xlabel="recall", ylabel="precision, voxels of all scans", xlim=(0, 1), ylim=(0, 1))


def _draw_froc(axis: Axes, curve: Row, score: str, colour: str) -> None:
    # From the strictest threshold to that with most false positives; below it, components merge. Each point has the
    # most false positives and the most lesions found down to its threshold, as in Froc.sensitivity_at.
    rates, found = (np.array(curve[name])[::-1] for name in ("false_positives_per_scan", "sensitivity"))
    end = int(rates.argmax()) + 1
    rates, found = (np.maximum.accumulate(values[:end]) for values in (rates, found))
    axis.plot(rates, found, ".-", ms=3, label=score, color=colour, lw=1.3)
    axis.set(xlabel="false positives a scan", ylabel="share of lesions found", ylim=(0, 1))
    axis.set_xscale("symlog", linthresh=1)


_DRAW = {"precision_recall": _draw_precision_recall, "froc": _draw_froc}


def _violins(test: pd.DataFrame, sets: Sequence[str], scores: Sequence[str], colours: Mapping[str, str]) -> Figure:
    columns = {
        "average_precision": "average precision",
        "best_dice": "Dice, oracle",
        f"dice@{VALIDATION}": "Dice, validation",
    }
    shown = {name: title for name, title in columns.items() if name in test}
    width, height = 1.2 + 0.5 * len(scores) * len(sets), 2.7 * len(shown) + 0.8
    figure, axes = grid(width, height, len(shown), len(sets))
    for row, (measure, title) in zip(axes, shown.items(), strict=True):
        row[0].set_ylabel(title)
        for axis, dataset in zip(row, sets, strict=True):
            of_set = test[test["set"] == dataset]
            if not of_set[measure].notna().any():
                axis.text(0.5, 0.5, "no threshold", ha="center", va="center", transform=axis.transAxes)
            for position, score in enumerate(scores):
                values = of_set[of_set["score"] == score][measure].dropna().to_numpy()
                if len(values) > 2 and np.ptp(values) > 0:
                    parts = axis.violinplot(values, [position], widths=0.8, showextrema=False)
                    parts["bodies"][0].set(facecolor=colours[score], alpha=0.35)
                axis.plot(np.full(len(values), position), values, ".", ms=3, color=colours[score])
                if len(values):
                    axis.hlines(values.mean(), position - 0.25, position + 0.25, color="k", lw=1.2)
            axis.set(xlim=(-0.6, len(scores) - 0.4), ylim=(0, 1))
            axis.grid(alpha=0.25, axis="y")
            axis.set_xticks(range(len(scores)), [""] * len(scores))
    for axis, dataset in zip(axes[0], sets, strict=True):
        axis.set_title(drawable(dataset), fontsize=10)
    for axis in axes[-1]:
        axis.set_xticks(range(len(scores)), scores, rotation=60, ha="right", fontsize=7)
    return figure


def _dice_against_threshold(curves: Row, summary: Row, test: pd.DataFrame) -> Figure:
    """Draw pooled voxel-wise Dice over thresholds; lines named in the legend mark those that can be chosen."""
    ours = [score for score in summary["scores"] if score not in BASELINES] or list(summary["scores"])
    ours = ours[:MOST_PANELS]
    sets = list(curves)
    figure, axes = grid(3.2 * len(ours) + 1.6, 2.7 * len(sets) + 0.4, len(sets), len(ours))
    for row, dataset in zip(axes, sets, strict=True):
        for axis, score in zip(row, ours, strict=True):
            curve = curves[dataset].get(score, {}).get("precision_recall")
            if curve is None:
                continue
            recall, precision = np.array(curve["recall"], float), np.array(curve["precision"], float)
            with np.errstate(invalid="ignore"):
                dice = 2 * recall * precision / (recall + precision)
            axis.plot(np.maximum(curve["threshold"], 0), np.nan_to_num(dice), color="k", lw=1.3)
            for name, at in _thresholds(summary, dataset, score).items():
                axis.axvline(at, lw=1, label=name, **_LOOKS[name])
            oracle = test[(test["set"] == dataset) & (test["score"] == score)].get(f"threshold@{ORACLE}")
            if oracle is not None and oracle.notna().any():
                low, high = np.nanquantile(oracle, [0.25, 0.75])
                axis.axvspan(low, high, color="#2ca02c", alpha=0.2, lw=0, label="oracle, middle half")
            axis.set_title(drawable(f"{dataset}: {score}"), fontsize=8)
            axis.set_ylim(0, 1)
            axis.grid(alpha=0.25)
    for axis in axes[-1]:
        axis.set_xlabel("threshold", fontsize=7)
    for axis in axes[:, 0]:
        axis.set_ylabel("Dice, voxels of all scans", fontsize=8)
    return figure


def _thresholds(summary: Row, dataset: str, score: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for entry in summary["thresholds"]:
        if entry["set"] in ("all", dataset) and entry["thresholds"]:
            found |= entry["thresholds"].get(score, {})
    return {name: at for name, at in found.items() if at is not None and not math.isnan(at)}


def save(figure: Figure, path: Path, fontsize: int = 7) -> Path:
    """Write a figure as PNG with one legend of all its axes."""
    handles: dict[str, Any] = {}
    for axis in figure.axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside right center", fontsize=fontsize, frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
    return path
