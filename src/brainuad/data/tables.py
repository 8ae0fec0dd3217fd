"""Reading the CSV files that list scans."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable
from pathlib import Path

from brainuad.errors import InputError
from brainuad.files import csv_reader

SPLIT_COLUMNS = ("img_name", "age", "label", "img_path", "mask_path", "seg_path")
MISSING_TEXT = ("", "nan", "none", "na")
_NAMES = ("subject", "img_name", "participant_id")  # columns in which NA is somebody's initials


def read_table(path: Path, required: Iterable[str]) -> list[tuple[dict[str, str], str]]:
    """Return a CSV's rows as text by column, each with its location ("file.csv line 3") for messages.

    Columns beyond the ``required`` ones are kept, empty rows are not. Missing values, "nan" among them, become ""; a
    subject may be called NA.

    Raises:
        InputError: There is no such file, it is no CSV, it has no rows, lacks a column or has one twice.
    """
    try:
        reader = csv_reader(path)
    except FileNotFoundError:
        raise InputError(path, "no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(path, f"cannot be read as text ({error})", "Save it as CSV in UTF-8") from error
    try:
        found = [(name or "").strip() for name in reader.fieldnames or ()]
        reader.fieldnames = found
        records = [(record, f"{path} line {reader.line_num}") for record in reader]
    except csv.Error as error:
        raise InputError(path, f"is no CSV ({error})", "Separate columns by commas") from error
    if twice := sorted({name for name in found if name and found.count(name) > 1}):
        raise InputError(path, f"has the column {', '.join(twice)} twice", "Remove one, or rename it")
    missing = sorted(set(required) - set(found))
    if missing:
        raise InputError(path, f"lacks the columns {', '.join(missing)}", f"It has {', '.join(found) or 'none'}")
    rows = [({name: _clean(name, record.get(name)) for name in found}, location) for record, location in records]
    rows = [(row, location) for row, location in rows if any(row.values())]
    if not rows:
        raise InputError(path, "has no rows")
    return rows


def has_no_rows(path: Path) -> bool:
    """Whether a CSV holds a heading at most; False where it cannot be read, which reading tells."""
    try:
        return not any(any(filter(None, row.values())) for row in csv_reader(path))
    except (OSError, UnicodeDecodeError, csv.Error):
        return False


def _clean(column: str, text: str | None) -> str:
    """Strip a value, and make every spelling of a missing one empty."""
    text = (text or "").strip()
    named = column in _NAMES and text == "NA"
    return "" if text.lower() in MISSING_TEXT and not named else text


def parse_label(text: str, location: str) -> int:
    """Return a label, written as an integer or a float; a missing one is 0, healthy. What is no number is refused."""
    try:
        return int(float(text or 0))
    except (ValueError, OverflowError):
        raise InputError(location, f"label {text!r} is no number", "0 is healthy, 1 is not") from None


def check_file_name(name: str, what: str, location: str) -> None:
    """Refuse a name from a table that cannot name files in a folder, or that leads out of it."""
    if not re.fullmatch(r"\w[\w. +-]*", name):
        raise InputError(location, f"{what} {name!r} cannot be a file name", "Use letters and digits")


def parse_age(text: str) -> float | None:
    """Return an age in years, or None where it is missing, infinite or no number."""
    try:
        age = float(text)
    except ValueError:
        return None
    return age if math.isfinite(age) else None
