"""The exceptions that users are meant to read."""

from __future__ import annotations

from pathlib import Path


def printable(text: str) -> str:
    """Return text with what cannot be printed escaped: file names may hold line breaks and bytes that are no text."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text
    )


class InputError(Exception):
    """Something a user gave cannot be used.

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
        """Pickle by constructor arguments, so that worker processes can raise it."""
        return type(self), (self.subject, self.fault, self.remedy)


class DeviceError(Exception):
    """A GPU stopped working in this process: whatever comes next would fail, so no scan is to blame.

    The command line prints it as it does an :class:`InputError`.

    Args:
        device: Its name.
        cause: What it said.
    """

    def __init__(self, device: str, cause: BaseException) -> None:
        first = (str(cause).splitlines() or [type(cause).__name__])[0]
        super().__init__(f"{device}: stopped working ({first}). Run again: what is finished is kept")
