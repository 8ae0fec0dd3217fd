"""Convert a DICOM series to a volume, by the program dcm2niix, which its Python package installs.

Files are copied to a temporary folder under new names, so no name or content of a file becomes part of a command.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from pydicom.uid import UID

from brainuad.data.volume import Volume
from brainuad.errors import InputError
from brainuad.inputs.dicom.series import Series, is_dicom, list_series, one_line

_TIME_LIMIT = 600  # seconds for one series
_BY_HAND = "Convert it by hand, and give the NIfTI file"
_SYNTAXES = {  # transfer syntaxes of dcm2niix: uncompressed, run-length, JPEG, lossless JPEG, JPEG-LS, JPEG 2000
    "1.2.840.10008.1.2" + end
    for end in ("", ".1", ".2", ".5", ".4.50", ".4.51", ".4.57", ".4.70", ".4.80", ".4.81", ".4.90", ".4.91")
}


def read_series(folder: Path, uid: str) -> Volume:
    """Convert the series with a SeriesInstanceUID, whose files lie in a folder and its subfolders, to a volume.

    Raises:
        InputError: The series is missing, is not a complete volume, has a compression that cannot be read, or cannot be
            converted.
    """
    series = find_series(folder, uid)
    check_series(series, folder)
    import dcm2niix  # finds the program

    with TemporaryDirectory(prefix="brainuad-") as temporary:
        given, made = Path(temporary) / "in", Path(temporary) / "out"
        given.mkdir()
        made.mkdir()
        try:
            for number, part in enumerate(series.slices):
                shutil.copyfile(part.path, given / f"{number:06d}.dcm")
        except OSError as error:
            raise InputError(error.filename or folder, f"cannot be copied ({error.strerror})") from error
        # ignore the user's defaults; no sidecar, no cropping, no rotation, no compression
        options = ["-g", "i", "-b", "n", "-x", "i", "-z", "n", "-f", "volume", "-o", str(made)]
        try:
            done = subprocess.run(
                [dcm2niix.bin, *options, str(given)],
                capture_output=True, text=True, errors="replace", timeout=_TIME_LIMIT, check=False,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise InputError(folder, f"took dcm2niix longer than {_TIME_LIMIT} s", "Convert it by hand") from error
        except OSError as error:
            raise InputError(dcm2niix.bin, f"cannot be run ({error.strerror})", "Install dcm2niix anew") from error
        volumes = sorted(made.iterdir())
        if len(volumes) != 1:
            told = [line for line in done.stdout.splitlines() if re.match("error|warning", line, re.IGNORECASE)]
            reason = told[-1].replace(str(given), "") if told else f"exit code {done.returncode}"
            fault = f"makes {len(volumes)} volumes of series {uid} by dcm2niix ({one_line(reason)})"
            raise InputError(folder, fault, _BY_HAND)
        try:
            volume = Volume.load(volumes[0])
        except InputError as error:
            raise InputError(folder, error.fault, error.remedy) from error
    announced = sum(part.frames * part.rows * part.columns for part in series.slices)
    if volume.array.size != announced:
        fault = f"makes {volume.array.size} voxels of {announced} pixels in series {uid} by dcm2niix"
        raise InputError(folder, fault, _BY_HAND)
    # they hold the time of the scan, and comments
    for field in ("descrip", "aux_file", "db_name"):
        volume.header[field] = b""
    return volume


def find_series(folder: Path, uid: str) -> Series:
    """Find one series in a folder and its subfolders; that there is none is an `InputError`."""
    files = sorted(path for path in folder.rglob("*") if is_dicom(path))
    for series in list_series(files):
        if series.uid == uid:
            return series
    raise InputError(folder, f"holds no series {uid!r} any more", "Check the folder")


def check_series(series: Series, folder: Path) -> None:
    """Refuse an unknown compression, and slices that are missing, duplicated or differ in size or orientation."""
    for syntax in {part.syntax for part in series.slices}:
        if syntax not in _SYNTAXES:
            fault = f"is compressed as {UID(syntax).name!r}, which cannot be read"
            raise InputError(folder, fault, "Decompress it, for instance by gdcmconv --raw")
    if len(series.slices) == 1:  # many frames in one file, which dcm2niix checks
        return
    first, of_series, anew = series.slices[0], f"series {series.uid}", "Export the series anew"
    for part in series.slices:
        if (part.rows, part.columns) != (first.rows, first.columns):
            sizes = f"{first.rows} x {first.columns} and {part.rows} x {part.columns} pixels"
            raise InputError(folder, f"mixes images of {sizes} in {of_series}", anew)
        if len(part.orientation) != 6 or len(part.position) != 3:
            raise InputError(part.path, "does not say where its slice lies", anew)
        if not np.allclose(part.orientation, first.orientation, atol=1e-3):
            raise InputError(folder, f"mixes images of several orientations in {of_series}", anew)
    across = np.cross(first.orientation[:3], first.orientation[3:])
    places = Counter(np.round([np.dot(across, part.position) for part in series.slices], 3).tolist())
    if max(places.values()) > 1:
        images = f"{len(series.slices)} images at {len(places)} places"
        raise InputError(folder, f"holds {images} in {of_series}: several echoes or times", "Give one 3-D scan")
    steps = np.diff(sorted(places))
    usual = float(np.median(steps))
    if missing := int(np.rint(steps / usual).sum()) - len(steps):
        present = f"there are {len(places)}, every {usual:.4g} mm, with gaps of up to {steps.max():.4g} mm"
        raise InputError(folder, f"lacks {missing} slice(s) of {of_series}: {present}", anew)
