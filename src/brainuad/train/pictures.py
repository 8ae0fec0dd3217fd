"""Pictures of sample slices while a model trains."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from torch import Tensor

from brainuad.files import atomic_path


def draw_curve(metrics: Path, path: Path) -> None:
    """Draw the losses of ``metrics.csv`` over steps as PNG; nothing where there is no such table."""
    if not metrics.exists():
        return
    table = pd.read_csv(metrics)
    figure = Figure(figsize=(6, 4), dpi=120, layout="constrained")
    axis = figure.subplots()
    for column, label in (("train_loss", "training"), ("val_loss", "validation, averaged weights")):
        known = table.dropna(subset=column)
        axis.plot(known["step"], known[column], ".-", ms=3, lw=1.2, label=label)
    axis.set(xlabel="step", ylabel="loss")
    axis.grid(alpha=0.25)
    axis.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def draw_pictures(pictures: dict[str, Tensor]) -> Figure:
    """Draw one column a title and one row a slice, grey from 0 to 1, anterior up.

    Args:
        pictures: (B, X, Y) each, by title.
    """
    rows = len(next(iter(pictures.values())))
    figure = Figure(figsize=(2 * len(pictures), 2 * rows), layout="constrained")
    axes = figure.subplots(rows, len(pictures), squeeze=False)
    for column, (title, slices) in enumerate(pictures.items()):
        axes[0, column].set_title(title)
        for row, picture in enumerate(slices):
            axes[row, column].imshow(picture.T, cmap="gray", vmin=0, vmax=1, origin="lower")
            axes[row, column].set_axis_off()
    return figure
