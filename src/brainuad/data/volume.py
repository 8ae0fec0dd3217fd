"""One scan in memory: canonical axes inside, the file's own axes, affine and header outside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import aff2axcodes, apply_orientation, inv_ornt_aff, io_orientation, ornt_transform

from brainuad.data.nifti import CANONICAL, check_affine, check_grid, check_values, read_nifti
from brainuad.errors import InputError
from brainuad.files import atomic_path

PLACEMENT_TOLERANCE = 1.0  # mm that two files of one grid may differ by: headers round
_FEWEST_VALUES = 16  # of a scan: even one of 8 bits has more
_LARGEST_OUTLINE = 600.0  # mL: about half a brain
_SAMPLE = 10_000  # voxels that show it of a usual scan
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # NIfTI's axes to those of DICOM and ITK, and back


def corners(shape: Sequence[int]) -> np.ndarray:
    """Return the indices of the corner voxels of a grid, ``(4, 8)`` float64: columns for a 4 x 4 matrix."""
    return np.c_[np.array(list(np.ndindex(2, 2, 2))) * (np.array(shape) - 1), np.ones(8)].T


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
            InputError: The file is missing, is no NIfTI, is truncated or damaged, is not three-dimensional, is larger
                than 512 x 512 x 512 voxels, has no place in space, or holds NaN, infinite or enormous values.

        Examples:
            >>> from importlib.resources import files
            >>> scan = Volume.load(files("brainuad.assets") / "demo" / "BraTS2021_01484_t1.nii.gz")
            >>> scan.array.shape
            (68, 89, 69)
            >>> scan.affine.round(1)  # 2 mm voxels, RAS
            array([[   2. ,    0. ,    0. , -186. ],
                   [   0. ,    2. ,    0. ,   21. ],
                   [   0. ,    0. ,    2. ,    3.5],
                   [   0. ,    0. ,    0. ,    1. ]])
        """
        array, header = read_nifti(Path(path))
        return cls._oriented(array, header.get_best_affine(), header)

    @classmethod
    def from_image(cls, image: nib.Nifti1Pair, *, name: str | Path = "image") -> Volume:
        """Take over a nibabel image; ``name`` is used in error messages.

        Raises:
            InputError: As for `load`.
        """
        shape = check_grid(image.shape, image.get_data_dtype(), name)
        check_affine(image.affine, name)
        with np.errstate(over="ignore", invalid="ignore"):  # check_values finds what became infinite
            array = np.asarray(image.dataobj, dtype=np.float32).reshape(shape)
        check_values(array, name)
        return cls._oriented(array, image.affine, image.header.copy())

    @classmethod
    def _oriented(cls, array: np.ndarray, affine: np.ndarray, header: nib.Nifti1Header) -> Volume:
        """Take over an array in the file's axes."""
        affine = np.asarray(affine, dtype=np.float64)
        orientation = io_orientation(affine)
        canonical = np.ascontiguousarray(apply_orientation(array, orientation))
        return cls(canonical, affine @ inv_ornt_aff(orientation, array.shape), header)

    @classmethod
    def from_array(cls, array: np.ndarray, affine: np.ndarray) -> Volume:
        """Make a volume of an ``(X, Y, Z)`` array and its affine to scanner mm, in any orientation.

        Raises:
            InputError: As for `load`.
        """
        array = np.asarray(array)
        if array.dtype.kind in "bil":  # NIfTI has no booleans, and nibabel refuses 64-bit integers
            array = array.astype(np.float32)
        image = nib.Nifti1Image(array, np.asarray(affine, dtype=np.float64))
        image.header.set_xyzt_units("mm")
        return cls.from_image(image, name="array")

    def check_scan(self, name: str | Path) -> None:
        """Check that this can be a scan: the header says how it lies, and it holds many different values.

        Where the header does not say it, an orientation was made up for the volume.

        Raises:
            InputError: ``sform_code`` and ``qform_code`` are both 0, or there are only a few values, as in a mask;
                ``name`` is used in the message.
        """
        if int(self.header["sform_code"]) <= 0 and int(self.header["qform_code"]) <= 0:
            fault = "says nowhere how it lies (sform_code and qform_code are 0), so left and right cannot be told"
            raise InputError(name, fault, "Convert it again, or set its sform if you know how it lies")
        some = np.unique(self.array.ravel()[:: max(1, self.array.size // _SAMPLE)])
        if len(some) < _FEWEST_VALUES and 1 < (count := len(np.unique(self.array))) < _FEWEST_VALUES:
            fault = f"holds only {count} different values, so it is a mask or a parcellation"
            raise InputError(name, fault, "Give the scan itself")

    def outline_fault(self) -> str:
        """Return why this cannot be the outline of lesions, "" if it can: a brain mask or a scan is none."""
        ml = float(self.inside.sum() * self.voxel_ml)
        fault = f"marks {ml:.0f} mL, most of a brain: no lesion mask, but a brain mask or a scan"
        return "" if ml < _LARGEST_OUTLINE else fault

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along the canonical axes."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def inside(self) -> np.ndarray:
        """``(X, Y, Z)`` bool, where a mask is set: above 0.5, which is half of a fraction and any whole number."""
        return np.asarray(self.array > 0.5)

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in mL."""
        return float(abs(np.linalg.det(self.affine[:3, :3])) / 1000)

    def file_axes(self) -> np.ndarray:
        """Return the array in the axes of the file it came from."""
        to_file = ornt_transform(CANONICAL, io_orientation(self._file_affine()))
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
        moved = (self.affine - other.affine) @ corners(self.array.shape)
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
        kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
        image = kind(array.reshape(array.shape + trailing).astype(dtype), None, header)
        with atomic_path(path) as temporary:
            nib.save(image, temporary)
