"""Write files completely or not at all, hash their contents, and keep a cache of limited size."""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import json
import logging
import os
import platform
import re
import shutil
import stat
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from filelock import FileLock

from brainuad.errors import InputError

if sys.platform != "win32":
    import fcntl

logger = logging.getLogger(__name__)
T = TypeVar("T")
_asking = threading.Lock()  # the umask can only be read by setting it, for all threads
_NOT_TEXT = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]|\xff\xfe|\xfe\xff")  # control characters, marks of UTF-16
# pattern of a cached file's name; other files in the folder are left alone
ENTRY = re.compile(r"[0-9a-f]{32}\.np[yz]")
# Prefix of temporary names. It names the machine, because locks may not work between machines that share a folder.
_TEMPORARY = f".partial-{hashlib.sha256(platform.node().encode()).hexdigest()[:6]}"


@contextmanager
def atomic_path(target: str | Path, *, folder: bool = False) -> Iterator[Path]:
    """Yield a temporary file or folder beside ``target`` that replaces it when the block ends without an error.

    The temporary name keeps the target's suffixes, because image writers choose the format by them. Temporary files
    that a killed process of this machine left in the folder are removed.

    Raises:
        InputError: The folder cannot be written to, or the disk is full.
    """
    target = Path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_behind(target.parent)
        temporary, held = _temporary(target, folder)
    except OSError as error:
        raise InputError(target, f"cannot be written ({error.strerror})", "Choose another output folder") from error
    try:
        yield temporary
        with _asking:
            umask = os.umask(0)
            os.umask(umask)
        temporary.chmod((0o777 if folder else 0o666) & ~umask)
        temporary.replace(target)
    except OSError as error:
        fault = f"cannot be written ({error.strerror or error})"
        raise InputError(target, fault, "Free space or choose another folder") from error
    finally:
        with suppress(OSError):  # the folder may have been removed or made read-only
            _remove(temporary)
        if held is not None:
            os.close(held)


@contextmanager
def atomic_folder(target: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``target`` that becomes it when the block ends without an error.

    Raises:
        InputError: ``target`` exists already, it cannot be written to, or the disk is full.
    """
    target = Path(target)
    if target.is_symlink() or (target.exists() and not (target.is_dir() and not any(target.iterdir()))):
        raise InputError(target, "exists already", "Choose another folder, or remove it")
    with atomic_path(target, folder=True) as temporary:
        yield temporary


def _temporary(target: Path, folder: bool) -> tuple[Path, int | None]:
    """Make a temporary file or folder, locked while its descriptor is open, which shows that its process lives."""
    prefix, suffix = f"{_TEMPORARY}-", f"-{target.name}"
    while True:
        if folder:
            path = Path(tempfile.mkdtemp(suffix, prefix, target.parent))
            held = None if sys.platform == "win32" else os.open(path, os.O_RDONLY)
        else:
            held, name = tempfile.mkstemp(suffix, prefix, target.parent)
            path = Path(name)
        if sys.platform == "win32":  # Windows cannot replace an open file
            if held is not None:
                os.close(held)
            return path, None
        assert held is not None
        with suppress(OSError):  # a file system without locks
            fcntl.flock(held, fcntl.LOCK_EX)
        if path.exists():
            return path, held
        os.close(held)  # another process removed it as left behind, before it was locked


@cache
def _remove_left_behind(folder: Path) -> None:
    """Remove this machine's unlocked temporary files, whose processes were killed. Done once per folder."""
    if sys.platform == "win32":
        return
    for path in folder.glob(f"{_TEMPORARY}-*"):
        with suppress(OSError):  # locked, just removed, or a file system without locks
            # network locks require write access
            handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(path)
            finally:
                os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_writable(folder: str | Path) -> None:
    """Make a folder if it is missing; refuse one that cannot be written to, before the work for it is done."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(folder, f"cannot be written to ({error.strerror})", "Choose another output folder") from error


def write_text(target: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8, all or nothing. What UTF-8 cannot encode, as in odd file names, is escaped."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_bytes(target: str | Path, data: bytes) -> None:
    """Write ``data``, all or nothing."""
    with atomic_path(target) as temporary:
        temporary.write_bytes(data)


def write_json(target: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON, all or nothing. NaN is refused: JSON has none."""
    write_text(target, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        OSError: It cannot be opened.
        ValueError: It is no JSON, or nested too deeply.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error


def finished_record(sidecar: Path, recipe: Any, outputs: Callable[[Any], Iterable[Path]]) -> dict[str, Any] | None:
    """Return the JSON record of finished work if it has this "recipe" and all of its ``outputs`` are there, else None.

    A record that is damaged, or from which ``outputs`` cannot be told, is as good as absent.
    """
    with suppress(OSError, ValueError, LookupError, TypeError):
        record: dict[str, Any] = read_json(sidecar)
        if record["recipe"] == recipe and all(path.is_file() for path in outputs(record)):
            return record
    return None


@contextmanager
def locked(target: str | Path) -> Iterator[None]:
    """Keep other processes from updating a file meanwhile, by a lock on a hidden file beside it.

    On a file system without locks, as some network ones, no process waits.

    Raises:
        InputError: The folder cannot be written to.
    """
    target = Path(target)
    lock = target.with_name(f".{target.name}.lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        handle = lock.open("a")
    except OSError as error:
        raise InputError(target, f"cannot be written ({error.strerror})", "Choose another output folder") from error
    handle.close()
    with ExitStack() as held:
        with suppress(OSError, NotImplementedError):
            held.enter_context(FileLock(lock))
        yield


def check_regular(path: str | Path) -> None:
    """Refuse a pipe, socket or device: opening one may wait for ever. What is missing is left to who opens it."""
    with suppress(OSError, ValueError):
        mode = os.stat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise InputError(path, "is not a regular file", "Give a file on a disk")


def csv_reader(path: str | Path) -> csv.DictReader[str]:
    """Read a CSV file in UTF-8, UTF-16 or Windows' cp1252, with columns separated by commas, semicolons or tabs.

    Raises:
        InputError: It is no regular file.
        OSError: It cannot be read.
        UnicodeDecodeError: It is not text.
    """
    check_regular(path)
    raw = Path(path).read_bytes()
    wide = raw[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    try:
        text = raw.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError:
        if wide or _NOT_TEXT.search(raw):  # cp1252 would make text of nearly anything
            raise
        text = raw.decode("cp1252")
    first = text.partition("\n")[0]
    return csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True, delimiter=max(",;\t", key=first.count))


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in (heads, *rows)]
    return "\n".join([lines[0], "|---" * len(heads) + "|", *lines[1:]])


def key_of(*parts: Any) -> str:
    """Return a hash of JSON values, 32 hexadecimal digits: equal parts, equal key."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes as hexadecimal text. What cannot be read is an `InputError`."""
    check_regular(path)
    try:
        with Path(path).open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", "Check the path and its permissions") from error


class Cache:
    """Files named by hash in a folder of limited size; the least recently used ones are removed first.

    Threads and processes may share it.

    Args:
        folder: Made if missing. Other files in it are left alone.
        max_bytes: Total size of the files. Each further process that writes may exceed it by a sixteenth.
        otherwise: The consequence, for the single warning that the folder cannot be written to.
    """

    def __init__(self, folder: Path, max_bytes: int, otherwise: str) -> None:
        self.folder, self.max_bytes, self.otherwise = folder, max_bytes, otherwise
        self._left = 0  # bytes to write before the folder's size is checked again
        self._writable = True
        self._lock = threading.Lock()

    def read(self, name: str, read: Callable[[BinaryIO], T | None]) -> T | None:
        """Return the result of ``read`` for a file and mark it as used; None if it is missing or damaged."""
        path = self.folder / name
        try:
            with path.open("rb") as handle:
                value = read(handle)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            return None
        with suppress(OSError):  # the cache may be read-only
            os.utime(path)
        return value

    def write(self, name: str, size: int, write: Callable[[BinaryIO], object]) -> None:
        """Store a file of about ``size`` bytes, which ``write`` writes."""
        try:
            with self._lock:
                if not self._writable:
                    return
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
        with suppress(FileNotFoundError, NotADirectoryError):
            for item in os.scandir(self.folder):
                with suppress(FileNotFoundError):  # another process may remove files, too
                    if ENTRY.fullmatch(item.name):
                        entries.append((item.stat().st_mtime, item.stat().st_size, item.path))
        size = needed + sum(entry[1] for entry in entries)
        for _, length, path in sorted(entries):
            if size <= self.max_bytes:
                break
            Path(path).unlink(missing_ok=True)
            size -= length
        self._left = min(self.max_bytes - size, self.max_bytes // 16)
