"""Exceptions whose messages are written for users."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def printable(text: str) -> str:
    """Return text with unprintable characters escaped: file names may hold line breaks and bytes that are not text."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


class InputError(Exception):
    """An input of the user cannot be used.

    The message is one line that names the file (or setting), what is wrong with it, and what to do. The command
    line prints it without a traceback and exits with code 1.

    Args:
        subject: The file, folder or setting at fault.
        fault: What is wrong, with the offending value.
        remedy: What the user can do about it.
    """

    def __init__(self, subject: str | Path, fault: str, remedy: str = "") -> None:
        self.subject = str(subject)
        self.fault = fault
        self.remedy = remedy
        super().__init__(printable(f"{subject}: {fault}" + (f". {remedy}" if remedy else "")))

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str, str]]:
        """Pickle by constructor arguments, so that worker processes can raise the error."""
        return type(self), (self.subject, self.fault, self.remedy)


class ScanFault(ValueError):
    """A scan cannot be used, for a reason that has a remedy of its own. It becomes an `InputError`.

    Args:
        fault: What is wrong.
        remedy: What the user can do about it.
    """

    def __init__(self, fault: str, remedy: str) -> None:
        super().__init__(fault, remedy)
        self.fault = fault
        self.remedy = remedy

    def __str__(self) -> str:
        return self.fault


def remedy_of(error: Exception, otherwise: str) -> str:
    """Return the remedy that an error brings, or another one: a message has one."""
    return error.remedy if isinstance(error, ScanFault) else otherwise


@contextmanager
def blame(path: str | Path, remedy: str) -> Iterator[None]:
    """Turn a ValueError into an InputError about a file; ``remedy`` is for an error that brings none."""
    try:
        yield
    except ValueError as error:
        raise InputError(path, str(error), remedy_of(error, remedy)) from error


class DeviceError(Exception):
    """A GPU stopped working in this process. All further scans would fail, so no scan is at fault.

    The command line prints it like an `InputError`.

    Args:
        device: Its name.
        cause: The error that it raised.
    """

    def __init__(self, device: str, cause: BaseException) -> None:
        first = (str(cause).splitlines() or [type(cause).__name__])[0]
        super().__init__(f"{device}: stopped working ({first}). Run again: what is finished is kept")
