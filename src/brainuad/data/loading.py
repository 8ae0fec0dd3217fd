"""Prepared scans onto the model's grid: smoothing, crop, percentile scaling, reduction; cached by content."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from scipy import ndimage

from brainuad.config import DataConfig
from brainuad.data.cohort import Case
from brainuad.data.intensity import curvature_flow, on_zero, scale_to_percentiles
from brainuad.data.placement import ATLAS_CENTRE, Placement
from brainuad.data.sampling import sample_axes
from brainuad.data.volume import PLACEMENT_TOLERANCE, Volume
from brainuad.errors import InputError, ScanFault, remedy_of
from brainuad.files import Cache, key_of, sha256

_LOADER_VERSION = 5  # raise when the same settings give other numbers, so that old entries are not taken
MAX_OFF_CENTRE_MM = 60.0  # scans in atlas space lie nearer than this
_MAX_CACHE_BYTES = 20_000_000_000
T = TypeVar("T")
R = TypeVar("R")
_Volumes = tuple[Volume, Volume, Volume | None]  # image, brain mask, lesion


@dataclass(frozen=True, eq=False)
class NativeCase:
    """A case on the grid of its files, in canonical axes.

    Attributes:
        image: The scan.
        mask: ``(X, Y, Z)`` bool brain mask.
        lesion: ``(X, Y, Z)`` bool, or None without annotation.
    """

    image: Volume
    mask: np.ndarray
    lesion: np.ndarray | None


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """A case on the model's grid.

    Attributes:
        case: Where it came from.
        image: ``(X, Y, Z)`` float32, about [0, 1].
        mask: ``(X, Y, Z)`` bool brain mask.
        lesion: ``(X, Y, Z)`` bool, or None without annotation.
        affine: ``(4, 4)`` from grid indices to the scan's mm.
        native: The case on the grid of its files, where that was asked for.
    """

    case: Case
    image: np.ndarray
    mask: np.ndarray
    lesion: np.ndarray | None
    affine: np.ndarray
    native: NativeCase | None = None


def ahead(work: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[tuple[T, Future[R]]]:
    """Yield items in order, each with the future of its result, while threads work on the next few.

    Args:
        work: Thread-safe.
        items: Taken no sooner than they are worked on.
        workers: Threads, one at least, and items that are taken beyond the one yielded.
    """
    workers = max(1, workers)
    waiting: deque[tuple[T, Future[R]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(work, item)))
                if len(waiting) > workers:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def load_cohort(
    cases: Sequence[Case], config: DataConfig, *, report: Callable[[Case], None] = lambda case: None
) -> list[PreparedCase]:
    """Load cases in order, several at a time, through the cache; ``report`` is called after each.

    Raises:
        InputError: As for `load_case`, for the first case that fails.
    """
    prepared = []
    for case, loading in ahead(partial(load_case, config=config), cases, config.num_workers):
        prepared.append(loading.result())
        report(case)
    return prepared


def load_case(case: Case, config: DataConfig, *, native: bool = False) -> PreparedCase:
    """Load one case onto the model's grid, from the cache where it was loaded before with the same settings.

    Args:
        case: The case.
        config: The grid, and how scans are brought onto it.
        native: Give what its files hold as well.

    Raises:
        InputError: A file is missing, damaged or of another grid; the mask is empty; the image is constant; or, with
            ``affine="used"``, the scan is not in atlas space.
    """
    name, kept = f"{content_key(case, config)}.npz", _cache(cache_folder(config))
    arrays = kept.read(name, _read_entry)
    volumes = None
    if arrays is None:
        volumes = _read_files(case, config)
        try:
            image, mask, lesion, affine = place_volumes(*volumes, config)
        except ValueError as error:
            raise InputError(case.image, str(error), remedy_of(error, "Look at the scan and its mask")) from error
        fresh = {"image": image, "mask": mask, "affine": affine}
        if lesion is not None:
            fresh["lesion"] = lesion
        arrays = fresh
        size = sum(array.nbytes for array in arrays.values())
        kept.write(name, size, lambda handle: np.savez(handle, allow_pickle=False, **fresh))
    files = _native(volumes or _read_files(case, config)) if native else None
    return PreparedCase(case, arrays["image"], arrays["mask"], arrays.get("lesion"), arrays["affine"], files)


def load_native(case: Case, config: DataConfig) -> NativeCase:
    """Load what a case's files hold.

    Raises:
        InputError: A file is missing, damaged or of another grid, or the mask is empty.
    """
    return _native(_read_files(case, config))


def _native(volumes: _Volumes) -> NativeCase:
    image, mask, lesion = volumes
    return NativeCase(image, mask.inside, None if lesion is None else lesion.inside)


def cache_folder(config: DataConfig) -> Path:
    """Return the folder of the settings, or the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "brainuad"
    return Path(config.cache_dir) if config.cache_dir else default


def content_key(case: Case, config: DataConfig) -> str:
    """Return a hash of a case's files and of the settings that bring them onto the grid.

    Raises:
        InputError: A file is missing.
    """
    paths = [case.image, case.mask, case.lesion]
    for path in paths:
        if path is not None and not path.is_file():
            raise InputError(path, "no such file", f"It belongs to subject {case.subject}; see `brainuad check`")
    settings = {
        "loader": _LOADER_VERSION,
        "imageDim": list(config.imageDim),
        "rescaleFactor": config.rescaleFactor,
        "affine": config.affine,
        "smoothing_iterations": config.smoothing_iterations,
        "files": [sha256(path) if path is not None else None for path in paths],
    }
    return key_of(settings)


@cache
def _cache(folder: Path) -> Cache:
    remedy = "Scans are prepared anew each time; set datamodule.cfg.cache_dir to another folder"
    return Cache(folder, _MAX_CACHE_BYTES, remedy)


def _read_entry(handle: BinaryIO) -> dict[str, np.ndarray]:
    with np.load(handle, allow_pickle=False) as stored:
        return dict(stored)


def _read_files(case: Case, config: DataConfig) -> _Volumes:
    image, mask = Volume.load(case.image), Volume.load(case.mask)
    lesion = Volume.load(case.lesion) if case.lesion is not None else None
    for label, path in ((mask, case.mask), (lesion, case.lesion)):
        fault = _grid_fault(label, image, config) if label is not None else ""
        if fault:
            raise InputError(path or "", fault, "Resample it onto the image's grid")
    if lesion is not None and (fault := lesion.outline_fault()):
        raise InputError(case.lesion or "", fault, "Give the outline of the lesions")
    if not mask.inside.any():
        raise InputError(case.mask, "the brain mask holds nothing above 0.5", "Give a mask that is 1 in the brain")
    return image, mask, lesion


def _grid_fault(label: Volume, image: Volume, config: DataConfig) -> str:
    """Return how a label's grid differs from its image's; "" if it does not."""
    if label.array.shape != image.array.shape:
        return f"has shape {label.array.shape}, its image {image.array.shape}"
    if config.affine == "ignored" and label.file_orientation != image.file_orientation:
        return f"is stored in the axes {label.file_orientation}, its image in {image.file_orientation}"
    distance = label.distance_to(image)
    if config.affine == "used" and distance > PLACEMENT_TOLERANCE:
        return f"lies up to {distance:.1f} mm from its image by its affine"
    return ""


def place_volumes(
    image: Volume, mask: Volume, lesion: Volume | None, config: DataConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray]:
    """Bring volumes of one grid onto the model's.

    With ``affine="ignored"`` the array is taken as it lies in the file, 1 voxel as 1 mm: curvature flow, centre crop or
    zero-padding to ``imageDim``, percentile scaling inside the brain, reduction (B-spline; nearest for labels). With
    ``affine="used"`` the scan is placed on the atlas grid of the same size and spacing first, and scaled there.

    Returns:
        image, mask, lesion or None, and the affine from grid indices to the scan's mm.

    Raises:
        ValueError: The image is constant in the brain or looks standardised, the brain is not on the grid, or, with
            ``affine="used"``, the scan is not in atlas space.
    """
    image = image.with_array(on_zero(image.array))
    use_grid = _used_grid if config.affine == "used" else _ignored_grid
    return use_grid(image, mask, lesion, config)


def _ignored_grid(
    image: Volume, mask: Volume, lesion: Volume | None, config: DataConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray]:
    shape = tuple(config.imageDim)
    smooth = curvature_flow(image.file_axes(), iterations=config.smoothing_iterations)
    inside = crop_or_pad(mask.file_axes(), shape) > 0.5
    scaled = scale_to_percentiles(crop_or_pad(smooth, shape), inside)
    factor = config.rescaleFactor
    affine = np.diag([factor] * 3 + [1.0])
    first = [_first_voxel(have, want) for have, want in zip(smooth.shape, shape, strict=True)]
    affine[:3, 3] = np.add(first, 0.5 * (factor - 1))
    affine = np.asarray(image.header.get_best_affine(), dtype=np.float64) @ affine
    drawn = None if lesion is None else crop_or_pad(lesion.file_axes(), shape) > 0.5
    truth = None if drawn is None else reduce(drawn, factor, order=0) > 0.5
    return reduce(scaled, factor, order=3), reduce(inside, factor, order=0) > 0.5, truth, affine


def _used_grid(
    image: Volume, mask: Volume, lesion: Volume | None, config: DataConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray]:
    x, y, z = (round(size / config.rescaleFactor) for size in config.imageDim)
    placement = Placement.around_atlas((x, y, z), config.rescaleFactor)
    brain = mask.inside
    off = off_centre(brain, mask.affine)
    if off > MAX_OFF_CENTRE_MM:
        raise ScanFault(
            f"its brain lies {off:.0f} mm from the atlas brain",
            "Run `brainuad prepare` first, or set datamodule.cfg.affine=ignored",
        )
    smooth = curvature_flow(image.array, iterations=config.smoothing_iterations)
    inside = placement.sample_mask(mask)
    on_grid = placement.sample(image.with_array(smooth * brain))
    scaled = scale_to_percentiles(np.maximum(on_grid, 0), inside) * inside
    return scaled, inside, None if lesion is None else placement.sample_mask(lesion), placement.affine


def off_centre(brain: np.ndarray, affine: np.ndarray) -> float:
    """Return how far the centre of mass of an ``(X, Y, Z)`` bool brain lies from the atlas brain's centre, in mm.

    Raises:
        ValueError: The mask is empty.
    """
    centre = affine @ [*_centre(brain), 1]
    return float(np.linalg.norm(centre[:3] - ATLAS_CENTRE))


def _centre(mask: np.ndarray) -> list[float]:
    """Return the centre of mass of an ``(X, Y, Z)`` bool mask in voxels, from its voxels in each plane.

    Raises:
        ValueError: It is empty.
    """
    if not mask.any():
        raise ValueError("the brain mask is empty")
    plane = mask.sum(axis=0, dtype=np.int32)
    counts = (np.count_nonzero(mask, axis=(1, 2)), plane.sum(axis=1), plane.sum(axis=0))
    return [float(np.average(np.arange(len(voxels)), weights=voxels)) for voxels in counts]


def crop_or_pad(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Crop or zero-pad an ``(X, Y, Z)`` array around its centre; of an odd difference the larger half goes first."""
    for axis, (have, want) in enumerate(zip(array.shape, shape, strict=True)):
        first = _first_voxel(have, want)
        if want > have:
            widths = [(0, 0)] * array.ndim
            widths[axis] = (-first, want - have + first)
            array = np.pad(array, widths)
        elif want < have:
            array = array.take(range(first, first + want), axis=axis)
    return array


def _first_voxel(have: int, want: int) -> int:
    """Return which voxel along an axis becomes the first; below 0 it is one of the zeros before the array."""
    half = math.ceil(abs(have - want) / 2)
    return half if have > want else -half


def reduce(array: np.ndarray, factor: float, *, order: int) -> np.ndarray:
    """Reduce an ``(X, Y, Z)`` array along every axis, without an anti-aliasing filter, as the release does.

    Output voxel k samples input position ``factor * k + (factor - 1) / 2``: the fields of view coincide.
    """
    shape = [int(np.ceil(size / factor)) for size in array.shape]
    offset = 0.5 * (factor - 1)
    if order > 0:
        return sample_axes(array, [factor] * 3, [offset] * 3, shape, order=order, mode="mirror")
    return ndimage.affine_transform(
        array.astype(np.float32), [factor] * 3, offset, output_shape=shape, order=0, mode="mirror"
    )
