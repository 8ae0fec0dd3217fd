"""Cleaning of anomaly maps: erosion of the brain's rim, median filter, removal of small components.

The order and the settings are those of Behrendt et al., ISBI 2024: erode, median, threshold, drop small
components. The functions take tensors or arrays, maps and brain masks (X, Y, Z), and return tensors on the device of
what they were given. The median is PyTorch's on CUDA and NumPy's, which is faster on a processor, elsewhere, equal to
the bit.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from brainuad.components import components
from brainuad.scoring._arrays import as_mask, as_volume, keep_inside, mask_on
from brainuad.scoring.ssim import blur, gaussian_kernel

WINDOW_VOXELS = 2**26  # of the windows that are sorted at a time on a GPU: 256 MB
ENCLOSING = 26  # voxels that enclose one
Volume = TypeVar("Volume", np.ndarray, Tensor)


def erode_brain(map: Any, mask: Any) -> Tensor:
    """Return the map set to zero outside the brain mask after its rim has been peeled off.

    Every axial slice of the mask is eroded with a 4-connected cross, ``Y // 25`` times (3 times at 96
    voxels); beyond the array there is no brain. Reconstructions are least reliable at the brain's rim.

    Raises:
        ValueError: The map is not (X, Y, Z) or the mask has another shape.
    """
    values = as_volume(map, "map")
    brain = mask_on(values, mask)
    for _ in range(values.shape[1] // 25):
        wide = F.pad(brain, (0, 0, 1, 1, 1, 1))
        brain = brain & wide[:-2, 1:-1] & wide[2:, 1:-1] & wide[1:-1, :-2] & wide[1:-1, 2:]
    return keep_inside(values, brain)


def median_filter(map: Any, size: int = 5) -> Tensor:
    """Return the median over a cube of ``size`` voxels around every voxel.

    Borders are reflected with the edge voxel repeated (``d c b a | a b c d | d c b a``), as in
    `scipy.ndimage.median_filter`, whose result this is; it is faster on maps that are zero outside the brain.

    Raises:
        ValueError: ``size`` is not an odd positive number, or the map is not (X, Y, Z).
    """
    if size < 1 or size % 2 == 0:
        raise ValueError(f"size must be odd and positive, got {size}")
    values = as_volume(map, "map")
    if values.is_cuda:
        return _median_on_device(values, size // 2)
    array = values.cpu().numpy()
    result = np.zeros(array.shape, array.dtype)
    occupied = np.nonzero(array)
    if len(occupied[0]):
        # Outside this box every window holds zeros only. At a face of the box that is not a face of the array
        # the reflected voxels are zeros as well, as they should be.
        half = size // 2
        box = tuple(slice(max(int(i.min()) - half, 0), int(i.max()) + half + 1) for i in occupied)
        result[box] = _median_of_windows(array[box], half)
    return torch.from_numpy(result).to(values.device)


def _median_on_device(values: Tensor, half: int) -> Tensor:
    """Return the median filter of (X, Y, Z) by PyTorch alone; which windows are sorted, see `_median_of_windows`."""
    size = 2 * half + 1
    middle = size**3 // 2
    padded = values
    for axis, length in enumerate(values.shape):
        place = torch.arange(-half, length + half, device=values.device) % (2 * length)
        padded = padded.index_select(axis, place.minimum(2 * length - 1 - place))
    positive, negative = (_window_sums(signs.int(), size) for signs in (padded > 0, padded < 0))
    places = ((positive > middle) | (negative > middle)).nonzero()
    windows = padded.unfold(0, size, 1).unfold(1, size, 1).unfold(2, size, 1)
    result = torch.zeros_like(values)
    for some in places.split(max(1, WINDOW_VOXELS // size**3)):
        voxels = some.unbind(1)
        result[voxels] = windows[voxels].flatten(1).sort(dim=1).values[:, middle]
    return result


def _median_of_windows(array: np.ndarray, half: int) -> np.ndarray:
    """Return the median filter of (X, Y, Z), one sagittal plane at a time to bound the memory.

    Only windows that hold more positive values than any median has beside it, or more negative ones, are sorted: in
    the others, at the rim of the brain, zero is in the middle.
    """
    size = 2 * half + 1
    padded = np.pad(array, half, mode="symmetric")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size, size))
    taken = int(np.prod(windows.shape[3:]))
    result = np.zeros(array.shape, array.dtype)
    counted = np.uint8 if taken < 256 else np.int64
    positive, negative = (_window_sums(signs.astype(counted), size) for signs in (padded > 0, padded < 0))
    nonzero = (positive > taken // 2) | (negative > taken // 2)
    for plane, neighbourhoods, wanted in zip(result, windows, nonzero, strict=True):
        rows = neighbourhoods[wanted].reshape(-1, taken)
        rows.partition(taken // 2, axis=1)
        plane[wanted] = rows[:, taken // 2]
    return result


def _window_sums(values: Volume, size: int) -> Volume:
    """Return the sum of (X, Y, Z) over every cube of ``size`` voxels that fits in."""
    for axis in range(3):
        starts = values.shape[axis] - size + 1
        index: list[slice] = [slice(None)] * 3
        index[axis] = slice(0, starts)
        added = values[tuple(index)] + 0
        for shift in range(1, size):
            index[axis] = slice(shift, shift + starts)
            added += values[tuple(index)]
        values = added
    return values


def drop_small(binary: Any, min_voxels: int = 8) -> Tensor:
    """Return a binary map without its small components.

    Components are 26-connected. The size of one counts the holes it encloses (background that has no
    26-connected way out), but what is returned, (X, Y, Z) bool, keeps its holes.

    Raises:
        ValueError: The map is not (X, Y, Z).
    """
    device = binary.device if isinstance(binary, Tensor) else "cpu"
    labels, _ = large_components(as_mask(binary, "binary"), min_voxels)
    return torch.from_numpy(labels > 0).to(device)


def large_components(foreground: np.ndarray, min_voxels: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the components of a binary map that `drop_small` keeps.

    Args:
        foreground: ``(X, Y, Z)`` bool.
        min_voxels: The smallest size that stays, in voxels, enclosed holes among them.

    Returns:
        ``(X, Y, Z)`` integers, 0 where there is no component, else its number from 1; and ``(n,)`` the voxels of
        each, without holes, 0 of those that are dropped.
    """
    labels = np.ascontiguousarray(components(np.ascontiguousarray(foreground))[0])
    voxels = np.flatnonzero(foreground)
    component = labels.reshape(-1)[voxels]
    sizes = np.bincount(component, minlength=1)
    keep = sizes >= min_voxels
    # Enclosing a voxel takes all its 26 neighbours, so only larger components can gain from their holes.
    candidates = np.flatnonzero((sizes >= ENCLOSING) & ~keep)
    for label in candidates[candidates > 0]:
        places = np.column_stack(np.unravel_index(voxels[component == label], labels.shape))
        keep[label] = _filled_voxels(places - places.min(axis=0)) >= min_voxels
    labels.reshape(-1)[voxels[~keep[component]]] = 0
    return labels, np.where(keep, sizes, 0)[1:]


def _filled_voxels(places: np.ndarray) -> int:
    """Return the size of a component with its holes, given the indices ``(n, 3)`` of its voxels from 0."""
    component = np.zeros(places.max(axis=0) + 1, dtype=bool)
    component[tuple(places.T)] = True
    return int(ndimage.binary_fill_holes(component, np.ones((3, 3, 3))).sum())


def postprocess(map: Any, mask: Any) -> Tensor:
    """Return the map after `erode_brain` and `median_filter`, ready for a threshold.

    Args:
        map: Anomaly map (X, Y, Z).
        mask: Brain mask (X, Y, Z).

    Raises:
        ValueError: As `erode_brain`.
    """
    return median_filter(erode_brain(map, mask))


def smoothed(map: Any, mask: Any, width: float) -> Tensor:
    """Return the map after `erode_brain` and a Gaussian filter in which voxels outside have no weight.

    Args:
        map: Anomaly map.
        mask: Brain mask.
        width: Standard deviation of the Gaussian in voxels.

    Returns:
        (X, Y, Z): at every voxel that the erosion leaves the mean of those voxels, weighted by the Gaussian.

    Raises:
        ValueError: As `erode_brain`.
    """
    values = as_volume(map, "map")
    inside = erode_brain(torch.ones_like(values), mask)
    total, weight = blur(torch.stack([keep_inside(values, inside), inside]), [gaussian_kernel(width)])[:, 0]
    return keep_inside(total / weight.clamp(min=torch.finfo(weight.dtype).tiny), inside)
