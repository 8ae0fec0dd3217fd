"""Registries of models and scores, which other packages can extend.

A registry is a dict, a decorator and Python entry points. Adding a model or a score touches one place; the command
line and the tables read the registries.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Any, TypeVar

from brainuad.errors import InputError

T = TypeVar("T", bound=Callable[..., Any])


class Registry:
    """Maps names to callables.

    Args:
        kind: Kind of the entries, for messages ("score").
        group: Entry-point group of other packages' entries ("brainuad.scores").
    """

    def __init__(self, kind: str, group: str) -> None:
        self.kind = kind
        self.group = group
        self._entries: dict[str, Callable[..., Any]] = {}
        self.settings: dict[str, type] = {}
        self.draws: dict[str, int] = {}
        self._plugins_loaded = False
        self._families: list[Callable[[str], Callable[..., Any] | None]] = []

    def register(self, name: str, *, settings: type | None = None, draws: int = 1) -> Callable[[T], T]:
        """Return a decorator that registers a callable under ``name``; a name can be registered once.

        Args:
            name: Name for users.
            settings: Dataclass of a model's settings; presets and saved files are checked against it.
            draws: Number of independent reconstructions that a score needs.
        """

        def decorate(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = entry
            if settings is not None:
                self.settings[name] = settings
            self.draws[name] = draws
            return entry

        return decorate

    def family(self, of_name: T) -> T:
        """Register a function that makes entries from names, or returns None; for families too large to list."""
        self._families.append(of_name)
        return of_name

    def _load_plugins(self) -> None:
        if not self._plugins_loaded:
            self._plugins_loaded = True
            for point in entry_points(group=self.group):
                self._entries.setdefault(point.name, point.load())

    def __iter__(self) -> Iterator[str]:
        self._load_plugins()
        return iter(self._entries)

    def __getitem__(self, name: str) -> Callable[..., Any]:
        """Return the entry called ``name``.

        Raises:
            InputError: No entry has that name; the message lists the names and suggests the nearest.
        """
        self._load_plugins()
        if name not in self._entries:
            for of_name in self._families:
                if (entry := of_name(name)) is not None:
                    return entry
            near = difflib.get_close_matches(name, self._entries, n=1)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise InputError(name, f"unknown {self.kind}", f"{hint}Known: {', '.join(sorted(self._entries))}")
        return self._entries[name]


MODELS = Registry("model", "brainuad.models")
SCORES = Registry("score", "brainuad.scores")
