"""Static pictures of a case: scan, reconstruction, anomaly maps, lesion outline."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

from brainuad.components import outlined

_SLICES = 4
# red to yellow; values just above the first colour are transparent
_COLOURS = ListedColormap([(1, share, 0, 0.35 + 0.65 * share) for share in np.linspace(0, 1, 256)], "anomaly")
_PANELS_A_ROW = 6
_ON_SCREEN = 75  # dots per inch in a notebook
_FOOTER = "brainuad · research use only; not for diagnosis"


@dataclass(frozen=True, eq=False)
class Overlay:
    """An anomaly map and its colour scale. Its start comes from the model's calibration, never from the case.

    Attributes:
        name: Heading of the column.
        anomaly: ``(X, Y, Z)`` map, 0 and above.
        first_colour: Map value from which on voxels are coloured.
        full_scale: Map value of the brightest colour, or the map's highest value if that is higher. So the highest part
            of a large region is visible within it.
    """

    name: str
    anomaly: np.ndarray
    first_colour: float
    full_scale: float

    @cached_property
    def colours(self) -> np.ndarray:
        """``(X, Y, Z)`` from 0 at the first colour to 1 at the brightest; NaN outside the coloured regions.

        Regions are delineated like findings (`brainuad.components.outlined`).
        """
        full = max(self.full_scale, float(self.anomaly.max()))
        spread = (full - self.first_colour) or 1.0  # of a constant map
        out = outlined(self.anomaly, self.first_colour)[0] > 0
        return np.where(out, (self.anomaly - self.first_colour) / spread, np.nan)


class Picture(Figure):
    """A figure that needs no pyplot, and that notebooks show."""

    def png(self, dpi: float | str = "figure") -> bytes:
        """Return the picture as a PNG file."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", facecolor=self.get_facecolor(), dpi=dpi)
        return buffer.getvalue()

    def _repr_png_(self) -> bytes:
        return self.png(_ON_SCREEN)


def slice_number(z: int) -> str:
    """Return the name of an axial slice whose position is unknown."""
    return f"slice {z}"


def mni_height(to_mni: np.ndarray, shape: Sequence[int], z: int) -> str:
    """Return the name of an axial slice: the position of its centre in MNI mm.

    Args:
        to_mni: ``(4, 4)`` from indices to MNI mm.
        shape: Of the volume.
        z: Index of the slice.
    """
    return f"MNI z = {to_mni[2] @ [shape[0] / 2, shape[1] / 2, z, 1]:.0f} mm"


@cache
def _drawable() -> frozenset[int]:
    """Return the code points that the font of the pictures has."""
    return frozenset(get_font(findfont(FontProperties())).get_charmap())


def drawable(text: str) -> str:
    """Return a text with "?" for what the font lacks, which matplotlib would draw as a box and warn of."""
    return "".join(letter if letter.isspace() or ord(letter) in _drawable() else "?" for letter in text)


def montage(
    image: np.ndarray,
    reconstruction: np.ndarray | None,
    overlays: Sequence[Overlay],
    mask: np.ndarray,
    lesion: np.ndarray | None,
    *,
    title: str,
    scale_meaning: str,
    height: Callable[[int], str] = slice_number,
) -> Picture:
    """Draw axial slices, one per row: scan, reconstruction, anomaly maps over the scan, and the lesion's outline.

    Args:
        image: ``(X, Y, Z)`` scan in [0, 1], RAS axes; shown with the patient's right on the left.
        reconstruction: ``(X, Y, Z)`` on the scale of ``image``; None leaves its column out.
        overlays: Maps to show, one column each.
        mask: ``(X, Y, Z)`` bool brain mask.
        lesion: ``(X, Y, Z)`` bool ground truth, or None.
        title: Heading.
        scale_meaning: Meaning of the first and the brightest colour, written beside the colour bar.
        height: Function from a slice's index to its name, for instance its position in mm.
    """
    slices = choose_slices(mask, lesion)
    plain = {"scan": image} | ({} if reconstruction is None else {"reconstruction": reconstruction})
    columns = [*plain, *(overlay.name for overlay in overlays)]
    columns += ["lesion (annotation)"] if lesion is not None else []
    figure, axes = _panels(len(slices), len(columns), (2.3 * len(columns) + 0.9, 2.75 * len(slices) + 0.9))
    for row, z in zip(axes, slices, strict=True):
        row[0].text(0.02, 0.98, height(z), va="top", color="white", fontsize=7, transform=row[0].transAxes)
        for axis, name in zip(row, columns, strict=True):
            _draw_slice(axis, plain.get(name, image), z)
        for axis, overlay in zip(row[len(plain) :], overlays, strict=False):
            _draw_map(axis, overlay, z)
        if lesion is not None:
            _outline(row[-1], lesion, z)
    for axis, name in zip(axes[0], columns, strict=True):
        axis.set_title(drawable(name), color="white", fontsize=9)
    _write_around(figure, title, _FOOTER)
    figure.subplots_adjust(left=0.01, right=0.92, top=0.93, bottom=0.03, wspace=0.02, hspace=0.02)
    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), _COLOURS), cax=figure.add_axes((0.935, 0.3, 0.012, 0.4)))
    bar.ax.set_facecolor("black")  # its faint colours look as they do over a dark scan
    bar.set_ticks([])
    bar.set_label(scale_meaning, color="white", fontsize=7)
    return figure


def finding_panels(
    image: np.ndarray, overlay: Overlay, labels: np.ndarray, findings: Sequence[tuple[int, int, str]]
) -> Picture:
    """Draw findings one by one, two per row: the axial slice with the finding's outline, and beside it the map.

    Args:
        image: ``(X, Y, Z)`` scan in [0, 1], RAS axes.
        overlay: The anomaly map and its scale.
        labels: ``(X, Y, Z)``, the label of the finding that a voxel belongs to.
        findings: For each finding its label, the index of its axial slice, and the slice's name.
    """
    rows = -(-len(findings) // 2)
    figure, axes = _panels(rows, 4, (8, 2.5 * rows), dpi=90)
    for (label, z, height), scan, map in zip(findings, axes.flat[::2], axes.flat[1::2], strict=False):
        for axis in (scan, map):
            _draw_slice(axis, image, z)
        _draw_map(map, overlay, z)
        _outline(scan, labels == label, z, "#00e5ff")
        scan.set_title(f"finding {label} · {height}", color="white", fontsize=8)
    figure.subplots_adjust(left=0.01, right=0.99, top=1 - 0.25 / (2.5 * rows), bottom=0.01, wspace=0.02, hspace=0.12)
    return figure


def method_panels(
    image: np.ndarray, lesion: np.ndarray, overlays: Sequence[Overlay], *, title: str, scale_meaning: str
) -> Picture:
    """Draw the axial slice of the largest lesion area: the scan, the lesion's outline, and each map over the scan.

    Args:
        image: ``(X, Y, Z)`` scan in [0, 1], RAS axes.
        lesion: ``(X, Y, Z)`` bool ground truth.
        overlays: Maps to show, each on its own scale.
        title: Heading.
        scale_meaning: Meaning of the first and the brightest colour.
    """
    z = int(lesion.sum((0, 1)).argmax())
    names = ["scan", "lesion (annotation)", *(overlay.name for overlay in overlays)]
    columns = min(len(names), _PANELS_A_ROW)
    rows = -(-len(names) // columns)
    figure, grid = _panels(rows, columns, (2.3 * columns, 2.75 * rows + 0.7))
    axes = grid.ravel()
    for axis, name in zip(axes, names, strict=False):
        _draw_slice(axis, image, z)
        axis.set_title(drawable(name), color="white", fontsize=9)
    _outline(axes[1], lesion, z)
    for axis, overlay in zip(axes[2:], overlays, strict=False):
        _draw_map(axis, overlay, z)
    _write_around(figure, title, f"{scale_meaning} · {_FOOTER}")
    space = 1 / (2.75 * rows + 0.7)
    figure.subplots_adjust(left=0.01, right=0.99, top=1 - 0.65 * space, bottom=0.25 * space, wspace=0.02, hspace=0.12)
    return figure


def _panels(rows: int, columns: int, size: tuple[float, float], dpi: int = 110) -> tuple[Picture, np.ndarray]:
    """Return a black picture of a size in inches, and its axes ``(rows, columns)`` without frames."""
    figure = Picture(figsize=size, facecolor="black", dpi=dpi)
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    return figure, axes


def _draw_slice(axis: Axes, volume: np.ndarray, z: int) -> None:
    """Draw an axial slice, with R and L at its edges."""
    axis.imshow(_seen_from_the_feet(volume, z), cmap="gray", vmin=0, vmax=1)
    for x, side, place in ((0.02, "R", "left"), (0.98, "L", "right")):
        axis.text(x, 0.5, side, color="white", fontsize=7, va="center", ha=place, transform=axis.transAxes)


def _draw_map(axis: Axes, overlay: Overlay, z: int) -> None:
    coloured = np.ma.masked_invalid(_seen_from_the_feet(overlay.colours, z))
    axis.imshow(coloured, cmap=_COLOURS, vmin=0, vmax=1)


def _outline(axis: Axes, region: np.ndarray, z: int, colour: str = "#39ff14") -> None:
    if region[:, :, z].any():
        axis.contour(_seen_from_the_feet(region, z), [0.5], colors=colour, linewidths=0.9)


def _write_around(figure: Picture, title: str, footer: str) -> None:
    # names may contain "$", which starts mathematics in matplotlib
    figure.suptitle(drawable(title), color="white", fontsize=11, parse_math=False)
    figure.text(0.01, 0.008, footer, color="#bbbbbb", fontsize=7)


def choose_slices(mask: np.ndarray, lesion: np.ndarray | None) -> list[int]:
    """Choose axial slices to show: across the lesion, including its largest area, or across the brain."""
    if lesion is None or not lesion.any():
        present = np.flatnonzero(mask.any((0, 1)))
        return [int(z) for z in np.quantile(present, np.linspace(0.3, 0.75, _SLICES)).round()]
    area = lesion.sum((0, 1))
    present = np.flatnonzero(area)
    spread = np.quantile(present, np.linspace(0.15, 0.85, _SLICES - 1)).round().astype(int)
    return sorted({int(area.argmax()), *map(int, spread)})


def _seen_from_the_feet(volume: np.ndarray, z: int) -> np.ndarray:
    """Return an axial slice in radiological orientation: front up, the patient's right on the left."""
    return np.asarray(volume[:, :, z]).T[::-1, ::-1]
