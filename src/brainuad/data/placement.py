"""Where the model's grid lies in a scan: resampling onto it and back.

Every transform here is a 4 x 4 matrix in RAS mm that maps *atlas* coordinates to *scan* coordinates: the direction in
which images are resampled onto the atlas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import as_file, files
from typing import Any

import numpy as np
from scipy import ndimage

from brainuad.data.sampling import occupied_box, sample_axes
from brainuad.data.volume import Volume

# Centre of the SRI24 brain's bounding box, in mm of the atlas (RAS).
ATLAS_CENTRE = (-119.0, 110.0, 72.5)
_SPLINE_REACH = 16  # voxels, beyond which a value weighs less than 1e-9 in the coefficients of a cubic spline
POOR_ALIGNMENT = 0.5  # correlation with the atlas below which a person should look


@cache
def atlas_brain() -> Volume:
    """Return the SRI24 T1 brain (Rohlfing et al. 2010) at 2 mm, canonical axes, intensities in [0, 255]."""
    with as_file(files("brainuad.assets") / "sri24_t1_brain_2mm.nii.gz") as path:
        return Volume.load(path)


@dataclass(frozen=True, eq=False)
class Placement:
    """A regular grid around a brain, and where it lies in a scan.

    Attributes:
        shape: Voxels along right, anterior, superior.
        affine: ``(4, 4)``, voxel indices to atlas mm.
        atlas_to_scan: ``(4, 4)``, atlas mm to scanner mm; the identity for a scan that is in atlas space already.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    atlas_to_scan: np.ndarray

    @classmethod
    def around_atlas(
        cls, shape: tuple[int, int, int], spacing: float, atlas_to_scan: np.ndarray | None = None
    ) -> Placement:
        """Return the grid that is centred on the atlas brain, with voxels of ``spacing`` mm along every axis."""
        affine = np.diag([spacing] * 3 + [1.0])
        affine[:3, 3] = np.asarray(ATLAS_CENTRE) - spacing * (np.asarray(shape) - 1) / 2
        return cls(shape, affine, np.eye(4) if atlas_to_scan is None else atlas_to_scan)

    @property
    def to_scan(self) -> np.ndarray:
        """``(4, 4)``, voxel indices to scanner mm."""
        return self.atlas_to_scan @ self.affine

    @property
    def voxel_ml(self) -> float:
        """Volume that a voxel of the grid has in the scan, in mL."""
        return abs(float(np.linalg.det(self.to_scan[:3, :3]))) / 1000

    def sample(self, volume: Volume, *, order: int = 3) -> np.ndarray:
        """Resample a scan onto the grid.

        Args:
            volume: The scan.
            order: 3 for images (B-spline, after a Gaussian that keeps detail finer than the grid from aliasing),
                0 for labels (nearest neighbour).

        Returns:
            ``shape`` float32; zero outside the scan.
        """
        matrix = np.linalg.inv(volume.affine) @ self.atlas_to_scan @ self.affine
        return resample(volume.array, matrix, self.shape, order=order)

    def sample_mask(self, mask: Volume) -> np.ndarray:
        """Resample a mask, above 0.5 where set, onto the grid: ``shape`` bool, by the nearest neighbour."""
        return self.sample(mask, order=0) > 0.5

    def sample_outline(self, mask: Volume) -> np.ndarray:
        """Resample a mask onto the grid: ``shape`` bool, set where at least half a voxel is."""
        return resample(mask.inside, np.linalg.inv(mask.affine) @ self.to_scan, self.shape, order=1) > 0.5

    def cut(self, array: np.ndarray, mask: np.ndarray) -> Volume:
        """Return an array on the grid, cut to the bounding box of a mask on the grid, in its place in atlas space."""
        box = occupied_box(mask)
        affine = self.affine.copy()
        affine[:3, 3] = (self.affine @ [*(part.start for part in box), 1])[:3]
        return Volume.from_array(array[box], affine)

    def back(self, array: Any, scan: Volume, brain: np.ndarray) -> Volume:
        """Bring values on the grid back to the grid of the scan, 0 outside its brain.

        Args:
            array: Of the grid's shape.
            scan: The scan.
            brain: Bool brain mask on the scan's grid, not empty.
        """
        box = occupied_box(brain)  # a third of a scan
        native = np.zeros(brain.shape, dtype=np.float32)
        native[box] = back_to_scan(array, self.to_scan, scan.affine, brain[box], box)
        return scan.with_array(native)


def resample(array: np.ndarray, matrix: np.ndarray, shape: tuple[int, ...], *, order: int) -> np.ndarray:
    """Sample an ``(X, Y, Z)`` array at ``matrix @ index`` for every index of a grid of ``shape``.

    With ``order`` above 0 and a grid coarser than the array, the array is first smoothed so that the full width at
    half maximum of one voxel grows to that of the coarser one. A matrix that is a whole-voxel shift copies exactly.
    """
    array = np.asarray(array, dtype=np.float32)
    linear, offset = matrix[:3, :3], matrix[:3, 3]
    if np.allclose(linear, np.eye(3), atol=1e-6) and np.allclose(offset, np.rint(offset), atol=1e-4):
        order, offset, linear = 0, np.rint(offset), np.eye(3)
    elif order > 0:
        step = np.linalg.norm(linear, axis=1)  # source voxels per target voxel, along each source axis
        sigma = np.sqrt(np.maximum(step**2 - 1, 0)) / 2.355
        sigma *= (sigma > 0.05).any()
        array, start = _without_margin(array, _SPLINE_REACH + np.ceil(4 * sigma).astype(int))
        offset = offset - start
        if _is_parallel(linear, shape):
            steps = np.diag(linear)
            return sample_axes(array, steps, offset, shape, order=order, mode="constant", sigmas=sigma)
        array = ndimage.gaussian_filter(array, sigma, mode="constant")
    # 'constant' would blend cubic samples with zeros only beyond the last voxel, which is what a brain needs.
    return ndimage.affine_transform(array, linear, offset, output_shape=shape, order=order, mode="constant", cval=0.0)


def _without_margin(array: np.ndarray, reach: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the box in which an ``(X, Y, Z)`` array is not zero, wider by ``reach`` voxels, and where it begins.

    Three quarters of a scan without its skull are zeros, which take as long to filter as a brain does.
    """
    box = occupied_box(array)
    start = np.array([max(0, part.start - more) for part, more in zip(box, reach, strict=True)])
    stop = [part.stop + more for part, more in zip(box, reach, strict=True)]
    return array[tuple(map(slice, start, stop))], start


def _is_parallel(linear: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether two grids have the same axes: to 1e-4 voxels, at the far end of the grid."""
    return bool((np.abs(linear - np.diag(np.diag(linear))) @ shape < 1e-4).all())


def resample_map(array: np.ndarray, matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Sample a map ``(X, Y, Z)`` at ``matrix @ index`` for every index of a grid of ``shape``, linearly.

    The map extends half a voxel beyond the centres of its outermost voxels, so that a scan that ends there has values;
    farther out it is 0.
    """
    faces = (array[[0, -1]], array[:, [0, -1]], array[:, :, [0, -1]])
    if not any(face.any() for face in faces):
        return resample(array, matrix, shape, order=1)
    wider = np.eye(4)
    wider[:3, 3] = 1
    there = resample(np.pad(array, 1, mode="edge"), wider @ matrix, shape, order=1)
    linear, offset = matrix[:3, :3], matrix[:3, 3]
    if _is_parallel(linear, shape):
        for axis, (step, start, length) in enumerate(zip(np.diag(linear), offset, array.shape, strict=True)):
            position = step * np.arange(shape[axis]) + start
            there[(slice(None),) * axis + ((position < -0.5) | (position > length - 0.5),)] = 0
        return there
    inside = ndimage.affine_transform(
        np.ones(array.shape, np.uint8), linear, offset, output_shape=shape, order=0, mode="grid-constant"
    )
    return there * inside


def back_to_scan(
    array: Any, grid_to_scan: np.ndarray, affine: np.ndarray, brain: np.ndarray, box: Sequence[slice]
) -> np.ndarray:
    """Bring values on a model's grid back to a box of the scan's grid, linearly; 0 outside the brain.

    Args:
        array: ``(X, Y, Z)`` values.
        grid_to_scan: ``(4, 4)``, indices of the model's grid to scanner mm.
        affine: ``(4, 4)``, indices of the scan's grid to scanner mm.
        brain: Bool brain mask in the box.
        box: The box.
    """
    from_box = np.eye(4)
    from_box[:3, 3] = [part.start for part in box]
    matrix = np.linalg.inv(grid_to_scan) @ affine @ from_box
    return np.where(brain, resample_map(np.asarray(array, dtype=np.float32), matrix, brain.shape), np.float32(0))


def alignment(brain_on_grid: np.ndarray, placement: Placement) -> float:
    """Return Pearson's correlation of a registered brain with the atlas, inside the atlas brain (-1 .. 1)."""
    atlas = replace(placement, atlas_to_scan=np.eye(4)).sample(atlas_brain(), order=1)
    inside = atlas > 0
    return float(np.corrcoef(atlas[inside], brain_on_grid[inside])[0, 1])
