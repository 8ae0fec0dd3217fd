"""The paths in ``pc_environment.env``, the file of this computer."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from brainuad.errors import InputError

LINE = re.compile(r"""\s*(?:(?:export\s+)?(\w+)\s*=\s*(?:"([^"]*)"|'([^']*)'|([^#"']*?))\s*)?(?:#.*)?""")


def read_environment(path: Path) -> dict[str, str]:
    """Read KEY=value lines; ``#`` begins a comment, values may be quoted, ``export`` may stand in front.

    Raises:
        InputError: A line is something else, or the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(path, f"cannot be read ({error})", "Make it a text file of KEY=value lines") from error
    values = {}
    for number, line in enumerate(lines, start=1):
        match = LINE.fullmatch(line)
        if not match:
            fault = f"{line.strip()!r} is not KEY=value"
            raise InputError(f"{path}:{number}", fault, "Correct or remove the line")
        if match[1]:
            values[match[1]] = match[match.lastindex or 0]
    return values


def path_overrides(overrides: Sequence[str], env_file: Path) -> list[str]:
    """Return overrides for ``data_dir`` and ``log_dir`` where the user gave none.

    The value is that of ``DATA_DIR`` and ``LOG_DIR`` in ``env_file`` (relative to its folder), else in the
    environment; without any, runs are written to ``logs``.

    Raises:
        InputError: ``DATA_DIR`` is nowhere.
    """
    in_file = read_environment(env_file) if env_file.is_file() else {}
    given = {override.split("=", 1)[0].lstrip("+") for override in overrides}
    added = []
    for name, variable, default in (("data_dir", "DATA_DIR", ""), ("log_dir", "LOG_DIR", "logs")):
        if name in given:
            continue
        value = os.environ.get(variable) or default
        if in_file.get(variable):
            value = str(env_file.parent / Path(in_file[variable]).expanduser())
        if not value:
            remedy = f"Write DATA_DIR=/your/data into {env_file}, or add data_dir=/your/data to the command"
            raise InputError("DATA_DIR", "is not set", remedy)
        added.append("{}='{}'".format(name, value.replace("'", r"\'")))
    return added
