"""One scan in memory: canonical axes inside, the file's own axes, affine and header outside."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import (
    OrientationError,
    aff2axcodes,
    apply_orientation,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)
from nibabel.spatialimages import HeaderDataError

from brainuad.errors import InputError
from brainuad.files import atomic_path

PLACEMENT_TOLERANCE = 1.0  # mm that two files of one grid may differ by: headers round
_RAS = np.array([[0, 1], [1, 1], [2, 1]])
_MAX_VOXELS = 2**29  # 2 GiB as float32: ten times the largest clinical brain scan
# what nibabel raises on files whose header or compressed stream is damaged
_DAMAGE = (OSError, EOFError, zlib.error, ValueError, OverflowError, HeaderDataError, OrientationError)


@dataclass(frozen=True, eq=False)
class Volume:
    """A three-dimensional scan with its place in space.

    Attributes:
        array: ``(X, Y, Z)`` float32, axes closest to right, anterior, superior (RAS).
        affine: ``(4, 4)`` float64, from indices of ``array`` to scanner coordinates in mm (RAS+).
        header: The file's NIfTI header: shape, affines and codes as stored on disk.
    """

    array: np.ndarray
    affine: np.ndarray
    header: nib.Nifti1Header

    @classmethod
    def load(cls, path: str | Path) -> Volume:
        """Read a NIfTI file (``.nii`` or ``.nii.gz``; any orientation; scale factors applied).

        Raises:
            InputError: The file is missing, is no NIfTI, is truncated, is not three-dimensional, or holds NaN or
                infinite values.
        """
        path = Path(path)
        if not path.exists():
            raise InputError(path, "no such file", "Check the path")
        try:
            image = nib.load(path)
            if not isinstance(image, nib.Nifti1Pair):
                raise InputError(path, "is not a NIfTI file", "Convert it to .nii or .nii.gz")
            return cls.from_image(image, name=path)
        except ImageFileError as error:
            raise InputError(path, "is not a readable NIfTI file", "Convert it to .nii or .nii.gz") from error
        except _DAMAGE as error:
            raise InputError(
                path, f"is truncated or damaged ({error})", "Copy or download it again"
            ) from error

    @classmethod
    def from_image(cls, image: nib.Nifti1Pair, *, name: str | Path = "image") -> Volume:
        """Take over a nibabel image; ``name`` is used in error messages.

        Raises:
            InputError: As for :meth:`load`.
        """
        shape = image.shape
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        if len(shape) != 3 or min(shape) < 2:
            raise InputError(
                name, f"has shape {image.shape}; a volume of three dimensions is needed", "Give one 3-D scan"
            )
        if np.prod(shape, dtype=np.int64) > _MAX_VOXELS:
            raise InputError(
                name, f"announces {shape} voxels, too many for a brain scan", "The header may be damaged"
            )
        if image.get_data_dtype().kind not in "buif":
            raise InputError(
                name, f"holds {image.get_data_dtype()} values; real numbers are needed", "Give a scalar scan"
            )
        affine = np.asarray(image.affine, dtype=np.float64)
        if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
            raise InputError(name, "has an affine that cannot be inverted", "Repair its sform or qform")
        array = np.asarray(image.dataobj, dtype=np.float32).reshape(shape)
        if not np.isfinite(array).all():
            bad = int(array.size - np.isfinite(array).sum())
            raise InputError(name, f"holds {bad} NaN or infinite values", "Replace them by numbers")
        orientation = io_orientation(affine)
        canonical = np.ascontiguousarray(apply_orientation(array, orientation))
        return cls(canonical, affine @ inv_ornt_aff(orientation, shape), image.header.copy())

    @classmethod
    def from_array(cls, array: np.ndarray, affine: np.ndarray) -> Volume:
        """Make a volume of an ``(X, Y, Z)`` array and its affine to scanner mm, in any orientation.

        Raises:
            InputError: As for :meth:`load`.
        """
        array = np.asarray(array)
        if array.dtype.kind in "bil":  # NIfTI has no booleans, and nibabel refuses 64-bit integers
            array = array.astype(np.float32)
        image = nib.Nifti1Image(array, np.asarray(affine, dtype=np.float64))
        image.header.set_xyzt_units("mm")
        return cls.from_image(image, name="array")

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along the canonical axes."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    def file_axes(self) -> np.ndarray:
        """Return the array in the axes of the file it came from."""
        to_file = ornt_transform(_RAS, io_orientation(self._file_affine()))
        return np.ascontiguousarray(apply_orientation(self.array, to_file))

    def _file_affine(self) -> np.ndarray:
        return np.asarray(self.header.get_best_affine(), dtype=np.float64)

    @property
    def file_orientation(self) -> str:
        """The axes of the file the volume came from, as the ends they point to ("RAS", "LPS")."""
        return "".join(aff2axcodes(self._file_affine()))

    def distance_to(self, other: Volume) -> float:
        """Return how far in mm a voxel lies from the same voxel of another volume, at most.

        Raises:
            ValueError: The shapes differ.
        """
        if other.array.shape != self.array.shape:
            raise ValueError(f"expected shape {self.array.shape}, got {other.array.shape}")
        corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(self.array.shape) - 1)
        moved = (self.affine - other.affine) @ np.c_[corners, np.ones(len(corners))].T
        return float(np.linalg.norm(moved[:3], axis=0).max())

    def with_array(self, array: np.ndarray) -> Volume:
        """Return a volume in the same place with other values, ``(X, Y, Z)`` in canonical axes.

        Raises:
            ValueError: The shape differs.
        """
        if array.shape != self.array.shape:
            raise ValueError(f"expected shape {self.array.shape}, got {array.shape}")
        return replace(self, array=np.asarray(array, dtype=np.float32))

    def save(self, path: str | Path, dtype: type[np.generic] | np.dtype = np.float32) -> None:
        """Write as NIfTI in the file's own axes, with the affines, codes and shape it was read with.

        Values are stored as ``dtype`` without scale factors: integers are rounded, floats kept.
        """
        array = self.file_axes()
        if np.issubdtype(dtype, np.integer):
            limits = np.iinfo(np.dtype(dtype))
            array = np.clip(np.rint(array), limits.min, limits.max)
        header = self.header.copy()
        header.set_data_dtype(dtype)
        header.set_slope_inter(1, 0)
        header["cal_max"] = header["cal_min"] = 0
        # trailing axes of length one, which reading drops
        trailing = header.get_data_shape()[array.ndim :]
        image = nib.Nifti1Image(array.reshape(array.shape + trailing).astype(dtype), None, header)
        with atomic_path(path) as temporary:
            nib.save(image, temporary)
