"""Read and check plain values of a JSON file, which may have been edited."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_LARGEST = 1e300  # refuses infinity, NaN and integers beyond floating point


def number(values: Mapping[str, Any], name: str) -> float:
    """Return a finite number by name, or raise a ValueError."""
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _LARGEST:
        raise ValueError(f"has {str(value)[:40]!r} for the number {name!r}")
    return value


def numbers(values: Mapping[str, Any], name: str) -> tuple[float, ...]:
    """Return a list of finite numbers by name, or raise a ValueError."""
    return tuple(number({name: value}, name) for value in sequence(values, name))


def sequence(values: Mapping[str, Any], name: str, otherwise: list[Any] | None = None) -> list[Any]:
    """Return a list by name, ``otherwise`` if it is missing; raise a ValueError for anything else."""
    value = values.get(name, otherwise)
    if not isinstance(value, list):
        raise ValueError(f"has no list {name!r}")
    return value


def table(values: Mapping[str, Any], name: str, otherwise: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return a table by name, ``otherwise`` if it is missing; raise a ValueError for anything else."""
    value = values.get(name, otherwise)
    if not isinstance(value, dict):
        raise ValueError(f"has no table {name!r}")
    return value
