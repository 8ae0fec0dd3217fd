"""Whose scans are whose, and what would leak between splits."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from brainuad.data.cohort import SPLITS, Case


@dataclass(frozen=True)
class Leak:
    """A subject that is in more than one split, or an image that is listed more than once in one.

    Attributes:
        dataset: Data set of the subject; several are joined by "/".
        subject: Who; several names of one image are joined by "/".
        splits: Where; a split is named twice or more where it lists one image as often.
    """

    dataset: str
    subject: str
    splits: tuple[str, ...]

    @property
    def duplicated(self) -> bool:
        """Whether one split lists one image repeatedly, rather than two splits one subject."""
        return len(set(self.splits)) == 1

    def __str__(self) -> str:
        if self.duplicated:
            return f"{self.dataset} {self.subject} is listed {len(self.splits)} times in {self.splits[0]}"
        return f"{self.dataset} {self.subject} is in {' and '.join(self.splits)}"


def find_leaks(cases: Iterable[Case]) -> list[Leak]:
    """Return subjects in more than one split, then images listed more than once in a split.

    Cases are of one person that have one subject name (in one data set, or in all data sets of a manifest) or one
    image.
    """
    cases = list(cases)
    scans: dict[int, list[Case]] = {}
    rows: dict[tuple[str, str, str, Path], int] = {}
    for case, person in zip(cases, people(cases), strict=True):
        scans.setdefault(person, []).append(case)
        row = (case.dataset, case.subject, case.split, _image(case))
        rows[row] = rows.get(row, 0) + 1
    shared = []
    for members in scans.values():
        splits = tuple(split for split in SPLITS if any(case.split == split for case in members))
        if len(splits) > 1:
            datasets, subjects = (
                "/".join(dict.fromkeys(getattr(case, field) for case in members)) for field in ("dataset", "subject")
            )
            shared.append(Leak(datasets, subjects, splits))
    repeated = [
        Leak(dataset, subject, (split,) * count) for (dataset, subject, split, _), count in rows.items() if count > 1
    ]
    return shared + repeated


def people(cases: Sequence[Case]) -> list[int]:
    """Return a number for the person of every case: the index of that person's first case.

    Cases that share a name or an image are of one person, also where other cases or links connect them.
    """
    parent: dict[Hashable, Hashable] = {}

    def root(key: Hashable) -> Hashable:
        while parent.setdefault(key, key) != key:
            key = parent[key]
        return key

    names = [_name(case) for case in cases]
    for name, case in zip(names, cases, strict=True):
        parent[root(_image(case))] = root(name)
    first: dict[Hashable, int] = {}
    return [first.setdefault(root(name), index) for index, name in enumerate(names)]


class People:
    """Looks up all scans of one person.

    Args:
        cases: The scans.
    """

    def __init__(self, cases: Sequence[Case]) -> None:
        self.cases = list(cases)
        self._scans: dict[int, list[int]] = {}
        self._known: dict[Hashable, int] = {}
        for index, (case, person) in enumerate(zip(self.cases, people(self.cases), strict=True)):
            self._scans.setdefault(person, []).append(index)
            self._known[_name(case)] = self._known[_image(case)] = person

    def own(self, case: Case) -> tuple[int, ...]:
        """Return the indices of the scans of a case's person."""
        persons = {self._known[key] for key in (_name(case), _image(case)) if key in self._known}
        return tuple(sorted(index for person in persons for index in self._scans[person]))


def scans_of_others(cases: Sequence[Case]) -> int:
    """Return how many scans of other people there are to compare a case with, for the case that has fewest."""
    return len(cases) - max(Counter(people(cases)).values(), default=0)


def leak_free(cases: Sequence[Case]) -> list[Case]:
    """Drop what would leak (see ``find_leaks``): each person stays in one split only, each row once.

    Test wins over training and validation, so that test figures stay comparable; training wins over
    validation.
    """
    rank = {"test": 0, "train": 1, "val": 2}
    whose = people(cases)
    owner: dict[int, str] = {}
    for case, person in sorted(zip(cases, whose, strict=True), key=lambda pair: rank[pair[0].split]):
        owner.setdefault(person, case.split)
    kept: dict[tuple[str, str, Path], Case] = {}
    for case, person in zip(cases, whose, strict=True):
        if owner[person] == case.split:
            kept.setdefault((case.dataset, case.subject, _image(case)), case)
    return list(kept.values())


def _name(case: Case) -> Hashable:
    return "" if case.named_across else case.dataset, case.subject


def _image(case: Case) -> Path:
    return Path(os.path.realpath(case.image))
