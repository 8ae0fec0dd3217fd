"""A program in the place of HD-BET, whose weights cannot be part of the tests."""

from __future__ import annotations

from pathlib import Path


def stand_in(folder: Path, action: str) -> Path:
    """Write an executable ``hd-bet`` that notes how it was called in ``calls`` beside it, and then does something.

    Args:
        folder: Where; to be put on the PATH.
        action: Shell command; ``$2`` is the scan, ``$4`` the image that HD-BET would write.
    """
    folder.mkdir(exist_ok=True)
    program = folder / "hd-bet"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {folder / "calls"}\n{action}\n')
    program.chmod(0o755)
    return program
