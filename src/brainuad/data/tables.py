"""Reading the CSV files that list scans."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable
from pathlib import Path

from brainuad.errors import InputError

SPLIT_COLUMNS = ("img_name", "age", "label", "img_path", "mask_path", "seg_path")
MISSING_TEXT = ("", "nan", "none", "na")


def read_table(path: Path, required: Iterable[str]) -> list[tuple[dict[str, str], str]]:
    """Return a CSV's rows as text by column, each with its place ("file.csv line 3") for messages.

    Columns beyond the ``required`` ones are kept. Missing values, "nan" among them, become "".

    Raises:
        InputError: There is no such file, it is no CSV, it has no rows, or it lacks a column.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(path, "no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(path, f"cannot be read as text ({error})", "Save it as CSV in UTF-8") from error
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
    try:
        found = [(name or "").strip() for name in reader.fieldnames or ()]
        reader.fieldnames = found
        records = [(record, f"{path} line {reader.line_num}") for record in reader]
    except csv.Error as error:
        raise InputError(path, f"is no CSV ({error})", "Separate columns by commas") from error
    missing = sorted(set(required) - set(found))
    if missing:
        raise InputError(
            path, f"lacks the columns {', '.join(missing)}", f"It has {', '.join(found) or 'none'}"
        )
    if not records:
        raise InputError(path, "has no rows")
    return [({name: _clean(record.get(name)) for name in found}, place) for record, place in records]


def _clean(text: str | None) -> str:
    """Strip a value, and make every spelling of a missing one empty."""
    text = (text or "").strip()
    return "" if text.lower() in MISSING_TEXT else text


def parse_label(text: str, place: str) -> int:
    """Return a label, written as an integer or a float; a missing one is 0, healthy.

    Raises:
        InputError: It is no number; the message says at which ``place``.
    """
    try:
        return int(float(text or 0))
    except (ValueError, OverflowError):
        raise InputError(place, f"label {text!r} is no number", "0 is healthy, 1 is not") from None


def check_file_name(name: str, what: str, place: str) -> None:
    """Check that a name from a table can name files in a folder.

    Raises:
        InputError: It cannot, or it would lead out of the folder.
    """
    if not re.fullmatch(r"\w[\w. +-]*", name):
        raise InputError(place, f"{what} {name!r} cannot be a file name", "Use letters and digits")


def parse_age(text: str) -> float | None:
    """Return an age in years, or None where it is missing, infinite or no number."""
    try:
        age = float(text)
    except ValueError:
        return None
    return age if math.isfinite(age) else None
