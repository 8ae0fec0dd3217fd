"""Pictures of sample slices while a model trains."""

from __future__ import annotations

from matplotlib.figure import Figure
from torch import Tensor


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
