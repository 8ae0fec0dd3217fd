"""One static picture a case: scan, reconstruction, anomaly map, lesion outline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from brainuad.files import atomic_path

_SLICES = 4
_FOOTER = "brainuad · research use only; not for diagnosis"


def montage(
    image: np.ndarray,
    reconstruction: np.ndarray,
    anomaly: np.ndarray,
    mask: np.ndarray,
    lesion: np.ndarray | None,
    *,
    full_scale: float,
    title: str,
    scale_meaning: str,
) -> Figure:
    """Draw axial slices, one a row: scan, reconstruction, anomaly map over the scan, and the lesion's outline.

    Args:
        image: ``(X, Y, Z)`` scan in [0, 1], RAS axes; shown with the patient's right on the left.
        reconstruction: ``(X, Y, Z)`` on the scale of ``image``.
        anomaly: ``(X, Y, Z)`` map, 0 and above.
        mask: ``(X, Y, Z)`` bool brain mask.
        lesion: ``(X, Y, Z)`` bool ground truth, or None.
        full_scale: Map value of the brightest colour: fixed for a model, never taken from this case.
        title: Heading.
        scale_meaning: What ``full_scale`` is, under the colour bar.
    """
    slices = choose_slices(mask, lesion)
    columns = ["scan", "reconstruction", "anomaly map"] + (
        ["lesion (annotation)"] if lesion is not None else []
    )
    figure = Figure(figsize=(2.3 * len(columns) + 0.9, 2.75 * len(slices) + 0.9), facecolor="black", dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(slices), len(columns), squeeze=False)
    heat = None
    for row, z in zip(axes, slices, strict=True):
        for axis in row:
            axis.set_axis_off()
        for axis, volume in ((row[0], image), (row[1], reconstruction), (row[2], image)):
            axis.imshow(_radiological(volume, z), cmap="gray", vmin=0, vmax=1)
        shown = np.ma.masked_less_equal(_radiological(anomaly, z), 0.15 * full_scale)
        heat = row[2].imshow(shown, cmap="hot", vmin=0, vmax=full_scale, alpha=0.85)
        row[0].text(1, 2, f"z = {z}", color="white", fontsize=7, va="top")
        if lesion is not None:
            row[3].imshow(_radiological(image, z), cmap="gray", vmin=0, vmax=1)
            if lesion[:, :, z].any():
                row[3].contour(_radiological(lesion, z), [0.5], colors="#39ff14", linewidths=0.9)
    for axis, name in zip(axes[0], columns, strict=True):
        axis.set_title(name, color="white", fontsize=9)
    figure.suptitle(title, color="white", fontsize=11)
    figure.text(0.01, 0.008, _FOOTER, color="#bbbbbb", fontsize=7)
    figure.subplots_adjust(left=0.01, right=0.9, top=0.93, bottom=0.03, wspace=0.02, hspace=0.02)
    if heat is not None:
        bar = figure.colorbar(heat, cax=figure.add_axes((0.915, 0.3, 0.015, 0.4)))
        bar.ax.tick_params(colors="white", labelsize=7)
        bar.set_label(scale_meaning, color="white", fontsize=7)
    return figure


def choose_slices(mask: np.ndarray, lesion: np.ndarray | None) -> list[int]:
    """Return axial slices worth showing: those the lesion spans, its largest area among them, or the brain's."""
    if lesion is None or not lesion.any():
        present = np.flatnonzero(mask.any((0, 1)))
        return [int(z) for z in np.quantile(present, np.linspace(0.3, 0.75, _SLICES)).round()]
    area = lesion.sum((0, 1))
    present = np.flatnonzero(area)
    spread = np.quantile(present, np.linspace(0.15, 0.85, _SLICES - 1)).round().astype(int)
    return sorted({int(area.argmax()), *map(int, spread)})


def _radiological(volume: np.ndarray, z: int) -> np.ndarray:
    return np.asarray(volume[:, :, z]).T[::-1, ::-1]


def save_montage(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG, all or nothing."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", facecolor=figure.get_facecolor())
