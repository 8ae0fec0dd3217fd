"""A folder of what can be made again: bounded in size, and done without where it cannot be written to."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

from brainuad.errors import InputError
from brainuad.files import atomic_path

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Cache:
    """Files in a folder, of which those used longest ago make room for new ones; threads and processes may share it.

    Args:
        folder: Where; made if missing. Folders in it are left alone.
        max_bytes: Of all files together.
        otherwise: What follows, for the one warning that it cannot be written to.
    """

    def __init__(self, folder: Path, max_bytes: int, otherwise: str) -> None:
        self.folder, self.max_bytes, self.otherwise = folder, max_bytes, otherwise
        self._size: int | None = None  # of the folder, once it has been looked at
        self._writable = True
        self._lock = threading.Lock()

    def read(self, name: str, read: Callable[[BinaryIO], T | None]) -> T | None:
        """Return what ``read`` makes of a file, which counts as used; None where it is missing or damaged."""
        path = self.folder / name
        try:
            with path.open("rb") as handle:
                value = read(handle)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            return None
        with contextlib.suppress(OSError):  # of a cache that may only be read
            os.utime(path)
        return value

    def write(self, name: str, size: int, write: Callable[[BinaryIO], object]) -> None:
        """Keep a file of about ``size`` bytes, which ``write`` fills."""
        with self._lock:
            if not self._writable:
                return
        try:
            with self._lock:
                self._make_room(size)
            with atomic_path(self.folder / name) as temporary, temporary.open("wb") as handle:
                write(handle)
        except (InputError, OSError) as error:
            with self._lock:
                known, self._writable = not self._writable, False
            if not known:
                what = f"{error.subject}: {error.fault}" if isinstance(error, InputError) else error
                logger.warning("%s. %s", what, self.otherwise)

    def _make_room(self, needed: int) -> None:
        if self._size is not None and self._size + needed <= self.max_bytes:
            self._size += needed
            return
        entries = []
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for item in os.scandir(self.folder):
                with contextlib.suppress(FileNotFoundError):  # another process may do the same
                    if item.is_file():
                        entries.append((item.stat().st_mtime, item.stat().st_size, item.path))
        size = sum(entry[1] for entry in entries)
        for _, length, path in sorted(entries):
            if size + needed <= self.max_bytes:
                break
            Path(path).unlink(missing_ok=True)
            size -= length
        self._size = size + needed
