"""Volumes for the page: one common grid along the scanner's axes, small enough to embed in HTML."""

from __future__ import annotations

import base64
import gzip
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from scipy import ndimage

from brainuad.components import outlined
from brainuad.errors import InputError
from brainuad.files import sha256
from brainuad.report.records import Scored

FINEST = 2.0  # mm: the model's grid; fast enough for software rendering
_MARGIN = 12.0  # mm shown around the brain
_BRIGHTEST = 1.25  # on the scale where the brain's 1st percentile is 0 and its 99th is 1
_MAP_STEP = 0.002
_MAX_VOXELS = 2**29
_LABELS: dict[str, type] = {"brain": bool, "findings": np.uint16, "lesion": bool}  # the others are float32
_SMOOTHED = ("scan", "reconstruction")  # against aliasing; the map is smooth, and the page shows its values
_DAMAGE = (OSError, EOFError, zlib.error, ValueError, OverflowError, ImageFileError, HeaderDataError)


@dataclass(frozen=True, eq=False)
class Layer:
    """A volume read from a file: ``(X, Y, Z)`` and its ``(4, 4)`` affine to scanner mm."""

    array: np.ndarray
    affine: np.ndarray


@dataclass(frozen=True, eq=False)
class Display:
    """A scan, its maps and findings, on one grid whose axes are right, anterior, superior.

    Attributes:
        affine: ``(4, 4)``, indices to scanner mm: a scaling and a shift.
        volumes: By name, ``(X, Y, Z)``: "scan" and "reconstruction" float32 with the brain in [0, 1], "anomaly"
            float32, "findings" uint16 labels, "lesion" bool, "brain" bool. Only "anomaly" and "brain" are
            always there.
        notes: Volumes that are not shown, and why.
    """

    affine: np.ndarray
    volumes: dict[str, np.ndarray]
    notes: list[str]

    @property
    def voxel(self) -> float:
        """Edge of a voxel in mm."""
        return float(self.affine[0, 0])


def read_display(scored: Scored) -> Display:
    """Read the volumes of a scored scan and bring them to a grid of 2 mm, or of the scan's finest axis if coarser.

    Raises:
        InputError: The anomaly map cannot be read.
    """
    notes: list[str] = []
    shown = {
        "scan": (scored.outputs.get("scan", scored.source), "The scan"),
        "findings": (scored.outputs.get("lesions"), "The outline of findings"),
        "brain": (scored.outputs.get("brain"), "The brain mask"),
    }
    if (path := scored.outputs.get("reconstruction")) is not None:  # not every model makes one
        shown["reconstruction"] = path, "The reconstruction"
    if scored.lesion_mask is not None:
        shown["lesion"] = scored.lesion_mask, "The annotation"
    with ThreadPoolExecutor() as pool:  # decompression lets go of Python's lock
        reading = {name: pool.submit(_read_shown, scored, path, what) for name, (path, what) in shown.items()}
        anomaly = read_layer(scored.outputs.get("anomaly"), "the anomaly map")
    layers: dict[str, Layer | None] = dict.fromkeys(shown)
    for name, job in reading.items():
        try:
            layers[name] = job.result()
        except InputError as error:
            notes.append(f"{shown[name][1]} is not shown: {error}")
    brain = layers["brain"] or Layer(anomaly.array > 0, anomaly.affine)
    layers |= {"brain": Layer(brain.array > 0, brain.affine), "anomaly": anomaly}
    if (lesion := layers.get("lesion")) is not None:
        layers["lesion"] = Layer(lesion.array > 0.5, lesion.affine)
    affine, shape = display_grid(brain.array > 0, brain.affine)
    with ThreadPoolExecutor() as pool:  # so does resampling
        placing = {
            name: pool.submit(_to_grid, layer, affine, shape, label=name in _LABELS, smooth=name in _SMOOTHED)
            for name, layer in layers.items()
            if layer is not None
        }
    volumes: dict[str, np.ndarray] = {
        name: job.result().astype(_LABELS.get(name, np.float32)) for name, job in placing.items()
    }
    if not volumes["brain"].any():
        volumes["brain"] = np.ones(shape, dtype=bool)
    if "scan" in volumes:
        volumes["scan"] = _scaled(volumes["scan"], volumes["brain"])
    return Display(affine, volumes, notes)


def _read_shown(scored: Scored, path: Path | None, what: str) -> Layer:
    known = scored.record.scan.sha256
    if path is not None and path == scored.source and known and path.is_file() and sha256(path) != known:
        raise InputError(path, "has changed since it was scored", "Score it again")
    return read_layer(path, what)


def read_layer(path: Path | None, what: str) -> Layer:
    """Read a three-dimensional NIfTI file.

    Raises:
        InputError: It is missing, damaged, or not a NIfTI file.
    """
    if path is None:
        raise InputError(what, "was not written", "Score the scan again")
    if not path.is_file():
        raise InputError(path, "no such file", "It may have been moved")
    try:
        image = nib.load(path)
        if not isinstance(image, nib.Nifti1Pair) or np.prod(image.shape, dtype=float) > _MAX_VOXELS:
            raise InputError(path, "is not a NIfTI file of a brain", "Score the scan again")
        array = np.asarray(image.dataobj, dtype=np.float32)
        affine = np.asarray(image.affine, dtype=np.float64)
        while array.ndim > 3 and array.shape[-1] == 1:
            array = array[..., 0]
        if array.ndim != 3 or not np.isfinite(array).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
            raise InputError(path, f"is not a usable volume (shape {array.shape})", "Score the scan again")
    except _DAMAGE as error:
        raise InputError(path, f"is damaged ({error})", "Score the scan again") from error
    return Layer(array, affine)


def display_grid(brain: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Return affine and shape of the grid that shows a brain and a margin around it.

    Args:
        brain: ``(X, Y, Z)`` bool; if it is empty, the whole grid is shown.
        affine: ``(4, 4)``, its indices to scanner mm.
    """
    low, high = np.array([[0, 0, 0], brain.shape]) - 0.5
    if brain.any():
        box = ndimage.find_objects(brain.astype(np.uint8))[0]
        low, high = np.array([(part.start, part.stop - 1) for part in box]).T
    corners = low + np.array(list(np.ndindex(2, 2, 2))) * (high - low)
    placed = corners @ affine[:3, :3].T + affine[:3, 3]
    voxel = max(FINEST, float(np.linalg.norm(affine[:3, :3], axis=0).min()))
    first = np.floor((placed.min(0) - _MARGIN) / voxel) * voxel
    x, y, z = np.ceil((placed.max(0) + _MARGIN - first) / voxel).astype(int) + 1
    grid = np.diag([voxel, voxel, voxel, 1.0])
    grid[:3, 3] = first
    return grid, (int(x), int(y), int(z))


def _to_grid(layer: Layer, target: np.ndarray, shape: tuple[int, int, int], *, label: bool, smooth: bool) -> np.ndarray:
    """Resample by the scanner's coordinates: labels by the nearest neighbour, others linearly."""
    matrix = np.linalg.inv(layer.affine) @ target
    array = np.asarray(layer.array, dtype=np.float32)
    if smooth:
        step = np.linalg.norm(matrix[:3, :3], axis=1)  # source voxels a target voxel
        array = ndimage.gaussian_filter(array, np.sqrt(np.maximum(step**2 - 1, 0)) / 2.355, mode="nearest")
    order = 0 if label else 1
    return ndimage.affine_transform(
        array, matrix[:3, :3], matrix[:3, 3], output_shape=shape, order=order, mode="constant"
    )


def _scaled(image: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Scale intensities as the model does, so that scan and reconstruction can be compared."""
    low, high = np.percentile(image[brain], (1, 99))
    return np.clip((image - low) / max(high - low, 1e-6), 0, _BRIGHTEST).astype(np.float32)


def encode(display: Display, first_colour: float) -> dict[str, str]:
    """Return the volumes as base64 of ``.nii.gz`` files; the same volumes give the same text.

    The map is negative outside the regions that are coloured above ``first_colour``
    (`brainuad.components.outlined`): so the viewer leaves out the halo of a large lesion, and knows its values.
    """
    steps = {"scan": _BRIGHTEST / 255, "reconstruction": _BRIGHTEST / 255, "anomaly": _MAP_STEP}
    kinds = {"anomaly": "int32", "findings": "uint16"}
    encoded = {}
    for name, volume in display.volumes.items():
        if name == "brain":
            continue
        if name == "anomaly":
            volume = np.where(outlined(volume, first_colour)[0] > 0, volume, -volume)
        step, kind = steps.get(name, 1.0), np.iinfo(np.dtype(kinds.get(name, "uint8")))
        stored = np.clip(np.rint(volume / step), kind.min, kind.max).astype(kind.dtype)
        image = nib.Nifti1Image(stored, display.affine)
        image.header.set_slope_inter(step, 0)
        image.header.set_xyzt_units("mm")
        encoded[name] = base64.b64encode(gzip.compress(image.to_bytes(), 6, mtime=0)).decode("ascii")
    return encoded
