"""Whether what was laid onto the atlas has a brain's structure there, whatever its contrast and lesions."""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy import ndimage

from brainuad.data.placement import Placement, atlas_brain, resample
from brainuad.data.sampling import occupied_box
from brainuad.data.volume import Volume

_GRID = Placement.around_atlas((104, 120, 88), 2.0)
_BLOCK = 4.0  # mm: the mean over 2 x 2 x 2 voxels of the grid
_WINDOW = 7  # blocks along an edge: 28 mm
_DEEP = 6.0  # mm: any body of a brain's size has the atlas's outline once it is registered


def likeness(brain: Volume, mask: np.ndarray) -> float:
    """Return how many times better the atlas explains a registered brain than it does where it is laid wrongly.

    It explains the share of variance that a parabola of its intensity fits, in every cube of 28 mm: a parabola,
    because the brightest tissue of a FLAIR is neither the brightest nor the darkest of the T1 atlas; cubes, because
    bias fields and large lesions are a matter of other cubes. Only what is 6 mm and more below the surface counts.
    Smooth patterns of any kind correlate by chance: so well are they explained by the atlas mirrored front to back,
    upside down, or both, or turned by 90 degrees, of which the best is taken.

    Args:
        brain: On a grid in atlas space.
        mask: ``(X, Y, Z)`` bool.

    Returns:
        1 or less for most of what is no brain or lies another way; NaN where nothing is that deep inside, or the
        inside is constant.
    """
    matrix = np.linalg.inv(brain.affine) @ _GRID.affine
    ours = _blocks(resample(brain.array, matrix, _GRID.shape, order=1))
    deep = _deep(_blocks(resample(mask, matrix, _GRID.shape, order=1)) > 0.5)
    (atlas, within), *others = _atlases()
    if not (deep & within).any() or not np.ptp(ours[deep]) > 0:
        return float("nan")
    box = occupied_box(deep)
    ours, deep = (ours / np.abs(ours[deep]).mean())[box], deep[box]
    there = _explained(ours, atlas[box], deep & within[box])
    best = max(_explained(ours, other[box], deep & inside[box]) for other, inside in others)
    return there / best if best > 0 else float("nan")


@cache
def _atlases() -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the atlas in blocks, about 1 in the brain, and where it is deep: as it is, then laid wrongly."""
    atlas = _blocks(_GRID.sample(atlas_brain(), order=1))
    atlas /= atlas[atlas > 0].mean()
    margin = [((max(atlas.shape) - length) // 2,) * 2 for length in atlas.shape]  # of even lengths
    room = tuple(slice(before, before + n) for (before, _), n in zip(margin, atlas.shape, strict=True))
    cube = np.pad(atlas, margin)
    laid = [atlas, atlas[:, ::-1], atlas[:, :, ::-1], atlas[:, ::-1, ::-1]]
    laid += [np.rot90(cube, turn, axes)[room] for axes in ((0, 1), (0, 2), (1, 2)) for turn in (1, 3)]
    return [(image, _deep(image > 0)) for image in laid]


def _blocks(array: np.ndarray) -> np.ndarray:
    x, y, z = (length // 2 for length in array.shape)
    return np.asarray(array.reshape(x, 2, y, 2, z, 2).mean((1, 3, 5)))


def _deep(mask: np.ndarray) -> np.ndarray:
    distance = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=_BLOCK)
    return np.asarray(distance[1:-1, 1:-1, 1:-1] >= _DEEP)


def _explained(ours: np.ndarray, atlas: np.ndarray, inside: np.ndarray) -> float:
    """Return the mean share of local variance of one image that a parabola of another explains, 0 to 1."""
    # in float32, differences of squares would be noise where a tissue is even
    weight = inside.astype(np.float64)
    count = np.maximum(_summed(weight), 1e-6)

    def mean(values: np.ndarray) -> np.ndarray:
        return np.asarray(_summed(values * weight) / count)

    images = ours, atlas, (atlas - 1) ** 2
    means = [mean(image) for image in images]

    def covariance(one: int, other: int) -> np.ndarray:
        return mean(images[one] * images[other]) - means[one] * means[other]

    variance = np.maximum(covariance(0, 0), 1e-7)
    of_atlas = np.maximum(covariance(1, 1), 1e-7)
    line = covariance(0, 1)
    slope = covariance(1, 2) / of_atlas
    of_square = np.maximum(covariance(2, 2), 1e-8)
    # what the square adds is what the line leaves of it (Gram and Schmidt)
    left = np.maximum(of_square - slope**2 * of_atlas, 1e-3 * of_square)
    bent = covariance(0, 2) - slope * line
    share = (line**2 / of_atlas + bent**2 / left) / variance
    return float(np.clip(share, 0, 1)[inside].mean()) if inside.any() else 0.0


def _summed(values: np.ndarray) -> np.ndarray:
    return np.asarray(ndimage.uniform_filter(values, _WINDOW, mode="constant"))
