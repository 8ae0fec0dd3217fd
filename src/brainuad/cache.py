"""A folder of what can be made again: bounded in size, and done without where it cannot be written to."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

from brainuad.errors import InputError
from brainuad.files import atomic_path

logger = logging.getLogger(__name__)
T = TypeVar("T")
ENTRY = re.compile(
    r"[0-9a-f]{32}\.np[yz]"
)  # what a file is called; whatever else lies in the folder is not ours


class Cache:
    """Files named by hash in a folder, of which those used longest ago make room for new ones.

    Threads and processes may share it.

    Args:
        folder: Where; made if missing. It may hold other things, which are left alone.
        max_bytes: Of its files together; each further process that writes may go a sixteenth beyond.
        otherwise: What follows, for the one warning that it cannot be written to.
    """

    def __init__(self, folder: Path, max_bytes: int, otherwise: str) -> None:
        self.folder, self.max_bytes, self.otherwise = folder, max_bytes, otherwise
        self._left = 0  # bytes to write before the folder is looked at again
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
        if needed <= self._left:
            self._left -= needed
            return
        entries = []
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for item in os.scandir(self.folder):
                with contextlib.suppress(FileNotFoundError):  # another process may do the same
                    if ENTRY.fullmatch(item.name):
                        entries.append((item.stat().st_mtime, item.stat().st_size, item.path))
        size = needed + sum(entry[1] for entry in entries)
        for _, length, path in sorted(entries):
            if size <= self.max_bytes:
                break
            Path(path).unlink(missing_ok=True)
            size -= length
        self._left = min(self.max_bytes - size, self.max_bytes // 16)
