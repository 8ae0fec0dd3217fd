"""Reading untrusted NIfTI files.

nibabel parses the header. Everything whose cost the header announces is checked against the file first, and the values
are read piece by piece, so that a damaged or hostile file costs neither memory nor time. Extensions are not read: they
can be of any size, may hold what identifies a patient, and results must not carry them on.
"""

from __future__ import annotations

import gzip
import logging
import math
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, io_orientation, ornt_transform
from nibabel.spatialimages import HeaderDataError

from brainuad.errors import InputError

logger = logging.getLogger(__name__)

_MAX_VOXELS = 2**27  # 512 x 512 x 512: 0.5 GiB as float32, and about 1.2 GiB while a scan is being read
_SPACING = (0.01, 100.0)  # mm; whatever is outside was not meant in mm
_FARTHEST = 1e5  # mm from the scanner's centre
_LARGEST = 1e15  # its square is still far from the end of float32
_PIECE = 2**22  # bytes: a processor's cache holds what is being turned
CANONICAL = np.array([[0, 1], [1, 1], [2, 1]])  # axes to right, anterior, superior
_BEST_DEFLATE = 1032  # no gzip stream expands by more (zlib's documentation)
_SPARE = 2**24  # bytes that a compressed file may hold behind its last voxel
_HEADERS: dict[int, tuple[type[nib.Nifti1Header], int, bytes, bytes]] = {
    348: (nib.Nifti1Header, 344, b"n+1\0", b"ni1\0"),
    540: (nib.Nifti2Header, 4, b"n+2\0", b"ni2\0"),
}
_CONVERT = "Convert it to .nii or .nii.gz"
_COPY = "Copy or download it again"


def read_nifti(path: Path) -> tuple[np.ndarray, nib.Nifti1Header]:
    """Read a single-file NIfTI-1 or NIfTI-2 image of one volume.

    Returns:
        ``(X, Y, Z)`` float32 in the file's axes, in memory in canonical ones, scale factors applied, and the header
        without extensions.

    Raises:
        InputError: The file cannot be read, is no NIfTI, is damaged, or does not hold one volume of finite numbers
            with a place in space.
    """
    size = _check_file(path)
    with _damage_named(path), _opened(path) as stream:
        header = _read_header(path, stream)
        with np.errstate(over="ignore", invalid="ignore"):
            shape = check_grid(header.get_data_shape(), header.get_data_dtype(), path)
            check_affine(header.get_best_affine(), path)
            _warn_of_contradiction(header, path)
        array = _read_values(path, stream, header, shape, size)
    header["vox_offset"] = 0  # nibabel places the values of what is written
    return array, header


def read_header(path: Path) -> nib.Nifti1Header:
    """Read the header of a single-file NIfTI-1 or NIfTI-2 image, without extensions, with the errors of read_nifti."""
    _check_file(path)
    with _damage_named(path), _opened(path) as stream:
        return _read_header(path, stream)


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Turn what a damaged or unreadable file raises into an error that names it."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(path, f"is truncated or damaged ({error})", _COPY) from error
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror or error})", "Check the disk") from error
    except (HeaderDataError, ValueError, OverflowError) as error:  # what nibabel raises on a damaged header
        raise InputError(path, f"is damaged: {' '.join(str(error).split())}", _COPY) from error


def check_grid(shape: tuple[int, ...], dtype: np.dtype, name: str | Path) -> tuple[int, int, int]:
    """Return the shape of the one volume in an image, without trailing axes of length one.

    Raises:
        InputError: The image is no volume of real numbers, or is too large.
    """
    announced = shape = tuple(int(length) for length in shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 2:
        raise InputError(name, f"has shape {announced}; a volume of three dimensions is needed", "Give one 3-D scan")
    if math.prod(shape) > _MAX_VOXELS:
        fault = f"announces {' x '.join(map(str, shape))} voxels, too many for a brain scan"
        raise InputError(name, fault, "The header may be damaged; resample a finer scan to 0.5 mm")
    if dtype.kind not in "buif":
        what = "colours" if dtype.kind == "V" else f"{dtype} values"
        raise InputError(name, f"holds {what}; real numbers are needed", "Give a scalar scan")
    return shape[0], shape[1], shape[2]


def check_affine(affine: np.ndarray, name: str | Path) -> None:
    """Refuse an affine to scanner mm that no scan has: not finite, not invertible, or not in mm."""
    affine = np.asarray(affine, dtype=np.float64)
    if not np.isfinite(affine).all():
        raise InputError(name, "has NaN or infinite values in its affine", "Repair its sform or qform")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not spacing.all() or abs(np.linalg.det(affine[:3, :3] / spacing)) < 1e-3:
        raise InputError(name, "has an affine that cannot be inverted", "Repair its sform or qform")
    if spacing.min() < _SPACING[0] or spacing.max() > _SPACING[1]:
        voxel = " x ".join(f"{length:.3g}" for length in spacing)
        raise InputError(name, f"has voxels of {voxel} mm", "Repair its affine, which must be in mm")
    if np.abs(affine[:3, 3]).max() > _FARTHEST:
        raise InputError(name, "lies more than 100 m off the scanner's centre", "Repair its affine")


def _warn_of_contradiction(header: nib.Nifti1Header, path: Path) -> None:
    """Warn where the two affines of a header disagree on left and right; nibabel takes the sform."""
    if int(header["sform_code"]) <= 0 or int(header["qform_code"]) <= 0:
        return
    try:
        sform, qform = header.get_sform(), header.get_qform()
    except (HeaderDataError, ValueError):  # a damaged qform, which nobody uses
        return
    mirrored = np.linalg.det(sform[:3, :3]) * np.linalg.det(qform[:3, :3]) < 0
    opposed = sform[:3, 0] @ qform[:3, 0] < 0
    if mirrored or opposed:
        logger.warning("%s: its sform and its qform contradict each other on left and right; its sform is used", path)


def check_values(array: np.ndarray, name: str | Path) -> None:
    """Refuse NaN, infinite and enormous values, which no arithmetic would survive."""
    low, high = float(array.min()), float(array.max())  # NaN wins in both
    if not math.isfinite(low) or not math.isfinite(high):
        bad = array.size - sum(int(np.isfinite(piece).sum()) for piece in array)
        raise InputError(name, f"holds {bad} NaN or infinite values", "Replace them by numbers")
    if (largest := max(-low, high)) > _LARGEST:
        raise InputError(name, f"holds values as large as {largest:.1e}", "Check its scale factors, or rescale it")


def _check_file(path: Path) -> int:
    """Return the size of a regular file with a NIfTI name that can be opened and is not empty."""
    name = path.name.lower()
    try:
        status = os.stat(path)
    except FileNotFoundError:
        if path.is_symlink():
            raise InputError(path, "is a link to a file that is missing", "Fetch the file first") from None
        raise InputError(path, "no such file", "Check the path") from None
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", "Check the path") from error
    if stat.S_ISDIR(status.st_mode):
        raise InputError(path, "is a folder, not a file", "Give the file in it")
    if not stat.S_ISREG(status.st_mode):
        raise InputError(path, "is not a regular file", "Give a .nii or .nii.gz file")
    if name.endswith((".hdr", ".img", ".hdr.gz", ".img.gz")):
        raise InputError(path, "is half of a pair of files (.hdr and .img)", _CONVERT)
    if name.endswith((".mgz", ".mgh")):
        raise InputError(path, "is a FreeSurfer file", f"{_CONVERT}: mri_convert {path.name} scan.nii.gz")
    if not name.endswith((".nii", ".nii.gz")):
        raise InputError(path, "is not a readable NIfTI file by its name", _CONVERT)
    if status.st_size == 0:
        raise InputError(path, "is empty", _COPY)
    return status.st_size


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO | gzip.GzipFile]:
    """Yield the file's contents, uncompressed."""
    try:
        file = path.open("rb")
    except PermissionError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", "Check its permissions") from error
    with file:
        zipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if zipped != path.name.lower().endswith(".gz"):
            fault = "compressed" if zipped else "not compressed"
            remedy = f"If it is a NIfTI file, rename it to end in {'.nii.gz' if zipped else '.nii'}"
            raise InputError(path, f"is not a readable NIfTI file: {fault} by gzip, against its name", remedy)
        if zipped:
            with gzip.open(file) as stream:
                yield stream
        else:
            yield file


def _read_header(path: Path, stream: BinaryIO | gzip.GzipFile) -> nib.Nifti1Header:
    block = stream.read(348)
    sizes = {np.array(size, f"{order}i4").tobytes(): (size, order) for size in _HEADERS for order in "<>"}
    length, order = sizes.get(block[:4], (0, ""))
    if length == 0:
        raise InputError(path, "is not a readable NIfTI file by its first bytes", _CONVERT)
    kind, at, single, half = _HEADERS[length]
    block += stream.read(length - 348)
    if len(block) < length:
        raise InputError(path, f"is truncated: {len(block)} bytes of a header of {length}", _COPY)
    magic = block[at : at + 4]
    if magic == half:
        raise InputError(path, "is the header of a pair of files (.hdr and .img)", _CONVERT)
    if magic != single:
        raise InputError(path, f"is not a readable NIfTI file by its magic {magic!r}", _CONVERT)
    pixdim = kind(block, order, check=False)["pixdim"][1:4]  # nibabel would mend them by guessing
    if not (np.isfinite(pixdim) & (pixdim > 0)).all():
        voxel = " x ".join(f"{size:.3g}" for size in pixdim)
        raise InputError(path, f"has voxels of {voxel} mm in its header", "Repair its pixdim")
    header = kind(block, order, check=False)
    header.check_fix(_Repairs(logger, {"path": path}), error_level=logging.ERROR)
    return header


class _Repairs(logging.LoggerAdapter):
    """Names the file in what nibabel logs when it repairs a header; what it cannot repair it raises as well."""

    def log(self, level: int, msg: object, *args: Any, **kwargs: Any) -> None:
        if self.extra and level < logging.ERROR:
            self.logger.log(level, "%s: %s", self.extra["path"], msg)


def _read_values(
    path: Path, stream: BinaryIO | gzip.GzipFile, header: nib.Nifti1Header, shape: tuple[int, int, int], size: int
) -> np.ndarray:
    dtype, offset = header.get_data_dtype(), float(header["vox_offset"])
    slope, intercept = header.get_slope_inter()
    announced = math.prod(shape) * dtype.itemsize
    zipped = isinstance(stream, gzip.GzipFile)
    most = size * _BEST_DEFLATE if zipped else size
    if not stream.tell() <= offset <= most:  # also refuses NaN
        raise InputError(path, f"places its values at byte {offset:.4g}, outside the file", _COPY)
    if offset + announced > most:
        fault = f"is truncated: {size} bytes cannot hold the {announced} bytes of {shape} {dtype}"
        raise InputError(path, fault, _COPY)
    if offset > 2**30:  # a GiB of extensions
        raise InputError(path, f"places its values at byte {offset:.4g}", "Convert it anew")
    for _ in _pieces(stream, int(offset) - stream.tell(), path):
        pass
    volume = _laid_out(shape, header)
    with np.errstate(over="ignore", invalid="ignore"):  # check_values finds what became infinite
        for rows, planes in _blocks(shape, dtype.itemsize):
            block = volume[:, rows, planes]
            for piece in _pieces(stream, block.size * dtype.itemsize, path, block.size * dtype.itemsize):
                values = np.frombuffer(piece, dtype=dtype)
                if slope is not None and (slope, intercept) != (1, 0):
                    values = values.astype(np.float64) * slope + intercept
                block[...] = values.reshape(block.shape, order="F")
    if zipped:  # to the end, where the checksum is
        spare = 0
        while piece := stream.read(2**16):
            spare += len(piece)
            if spare > _SPARE:
                raise InputError(path, f"expands to more than the {announced} bytes its header announces", _COPY)
    check_values(volume, path)
    return volume


def _blocks(shape: tuple[int, int, int], itemsize: int) -> Iterator[tuple[slice, slice]]:
    """Yield rows and planes of about ``_PIECE`` bytes, in the order of a file: whole planes, or rows of a large one."""
    row = shape[0] * itemsize
    rows = min(shape[1], max(1, _PIECE // row))
    planes = max(1, _PIECE // (row * shape[1]))
    for plane in range(0, shape[2], planes):
        for first in range(0, shape[1], rows):
            yield slice(first, first + rows), slice(plane, plane + planes)


def _laid_out(shape: tuple[int, int, int], header: nib.Nifti1Header) -> np.ndarray:
    """Return an empty float32 array that is contiguous once its axes are turned to canonical ones."""
    to_canonical = io_orientation(header.get_best_affine())
    canonical_shape = [0, 0, 0]
    for length, axis in zip(shape, to_canonical[:, 0].astype(int), strict=True):
        canonical_shape[axis] = length
    to_file = ornt_transform(CANONICAL, to_canonical)
    return np.asarray(apply_orientation(np.empty(canonical_shape, dtype=np.float32), to_file))


def _pieces(stream: BinaryIO | gzip.GzipFile, length: int, path: Path, size: int = _PIECE) -> Iterator[bytes]:
    """Yield ``length`` bytes in pieces of ``size``, the last as it comes out."""
    for start in range(0, length, size):
        wanted = min(size, length - start)
        piece = stream.read(wanted)
        if len(piece) < wanted:
            missing = length - start - len(piece)
            raise InputError(path, f"is truncated: {missing} of {length} bytes are missing", _COPY)
        yield piece
