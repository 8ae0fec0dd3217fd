"""Plain values of a file that somebody may have edited."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def number(values: Mapping[str, Any], name: str) -> float:
    """Return a finite number by name.

    Raises:
        ValueError: It is missing or no finite number.
    """
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"has {value!r} for the number {name!r}")
    return value


def numbers(values: Mapping[str, Any], name: str) -> tuple[float, ...]:
    """Return a list of finite numbers by name.

    Raises:
        ValueError: It is missing or something else.
    """
    found = values.get(name)
    if not isinstance(found, list):
        raise ValueError(f"has no list {name!r}")
    return tuple(number({name: value}, name) for value in found)


def table(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a table by name.

    Raises:
        ValueError: It is missing or something else.
    """
    found = values.get(name)
    if not isinstance(found, dict):
        raise ValueError(f"has no table {name!r}")
    return found
