"""Files of a data set, in folders or in the downloaded tar archives.

A member of an archive is named by a path through it (``IXI-T1.tar/IXI012-HH-1211-T1.nii.gz``). No file is
unpacked under a name from the archive: a member is copied to a temporary folder when it is read.
"""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from brainuad.errors import InputError
from brainuad.files import sha256

if TYPE_CHECKING:
    from brainuad.data.volume import Volume

_ENDINGS = (".nii", ".nii.gz")


def nifti_files(root: Path) -> list[Path]:
    """Return the NIfTI files below a folder and in the tar archives there, or in one archive, in order.

    Raises:
        InputError: An archive cannot be read, is compressed, or has unsafe members.
    """
    if root.is_file():
        return _members(root)
    found = []
    for path in sorted(root.rglob("*")):
        if path.name.startswith("."):  # hidden files: those of macOS ("._name"), and half-written ones
            continue
        if path.name.endswith(_ENDINGS) and path.is_file():
            found.append(path)
        elif path.suffix == ".tar" and path.is_file():
            found += _members(path)
    return found


def read_volume(path: Path) -> Volume:
    """Read a NIfTI file or a member of an archive, with the errors of `Volume.load`."""
    from brainuad.data.volume import Volume  # imported here because the command line lists data sets without it

    with _on_disk(path) as file:
        try:
            return Volume.load(file)
        except InputError as error:
            raise InputError(path, error.fault, error.remedy) from error


def digest(path: Path) -> str:
    """Return the SHA-256 of a file or of a member of an archive, with the errors of `brainuad.files.sha256`."""
    with _on_disk(path) as file:
        if not file.exists():
            raise InputError(path, "no such file", "Check the path")
        return sha256(file)


def _members(archive: Path) -> list[Path]:
    """Return the paths of an archive's NIfTI files, and refuse archives with unsafe members."""
    found = []
    with _opened(archive) as tar:
        for member in tar:
            name = PurePosixPath(member.name)
            if name.is_absolute() or ".." in name.parts:
                raise InputError(archive, f"holds a member that leads out of it ({member.name!r})", "Do not trust it")
            if not (member.isreg() or member.isdir()):
                raise InputError(archive, f"holds a link or device ({member.name!r})", "Unpack it and give the folder")
            if member.isreg() and name.name.endswith(_ENDINGS) and not name.name.startswith("."):
                found.append(archive / name)
    return sorted(found)


@contextmanager
def _on_disk(path: Path) -> Iterator[Path]:
    """Yield a file, or a temporary copy of a member of an archive."""
    archive = next((parent for parent in path.parents if parent.is_file()), None)
    if archive is None:
        yield path
        return
    with TemporaryDirectory(prefix="brainuad-") as folder:
        copy = Path(folder) / path.name
        wanted = PurePosixPath(path.relative_to(archive))
        with _opened(archive) as tar:
            member = next((m for m in tar if m.isreg() and PurePosixPath(m.name) == wanted), None)
            source = tar.extractfile(member) if member else None
            if source is None:
                raise InputError(path, "no such file in the archive", "Was the archive changed?")
            with source, copy.open("wb") as target:
                shutil.copyfileobj(source, target)
        yield copy


@contextmanager
def _opened(archive: Path) -> Iterator[tarfile.TarFile]:
    try:
        # uncompressed only: in a compressed archive, each member would require reading all before it
        with tarfile.open(archive, "r:") as tar:
            yield tar
    except (tarfile.TarError, EOFError) as error:
        fault = f"is no readable, uncompressed tar archive ({error})"
        raise InputError(archive, fault, "Unpack it and give the folder") from error
    except OSError as error:
        raise InputError(archive, f"cannot be read ({error.strerror})", "Check its permissions") from error
