"""Who trains, validates and tests in ``benchmarks/roles``."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest

from brainuad.data.cohort import manifest_cases
from brainuad.prepare.raw.splits import read_splits

ROLES = Path(__file__).parents[2] / "benchmarks" / "roles"
TABLES = {path.stem: read_splits(path) for path in sorted(ROLES.glob("*.csv"))}


@pytest.mark.parametrize(
    ("table", "counts"),
    [
        ("brats21_t1", {"train": 0, "val": 5, "test": 4}),
        ("brats21_t2", {"train": 0, "val": 5, "test": 5}),
        ("mslub", {"train": 0, "val": 0, "test": 2}),
        ("ds002748", {"train": 28, "val": 6, "test": 14}),
    ],
)
def test_roles_are_those_of_the_documentation(table: str, counts: dict[str, int]) -> None:
    roles = [role for (role,) in TABLES[table].values()]
    assert {split: roles.count(split) for split in counts} == counts
    assert len((ROLES / f"{table}.csv").read_text().splitlines()) == 1 + len(roles)  # nobody is listed twice


def test_a_patient_has_one_role_in_both_modalities() -> None:
    t1, t2 = TABLES["brats21_t1"], TABLES["brats21_t2"]
    assert set(t2) - set(t1) == {"BraTS2021_01482"}
    assert all(t2[subject] == roles for subject, roles in t1.items())


def test_the_demo_shows_test_scans_only() -> None:
    known = {subject: roles for table in TABLES.values() for subject, roles in table.items()}
    demo = [
        case.subject
        for case in manifest_cases(Path(str(files("brainuad.assets") / "demo" / "manifest.csv")))
        if not case.subject.startswith("IXI")
    ]
    assert len(demo) == 6
    assert all(known[subject] == ("test",) for subject in demo)
