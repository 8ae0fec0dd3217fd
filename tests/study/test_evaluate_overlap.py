"""Scans are loaded before their turn, each once, a few at a time, and none that is not needed."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from painted import SCORES

from brainuad.data.cohort import Case
from brainuad.data.loading import PreparedCase, load_case
from brainuad.data.volume import Volume
from brainuad.detector import Detector
from brainuad.errors import InputError
from brainuad.study import evaluate_cases, failures
from brainuad.study import loader as module
from brainuad.study.loader import Loader

PATIENCE = 60  # seconds, for what comes at once


class Watched:
    """Stands for ``load_case``: notes which subjects are loaded, and lets a test wait until one is."""

    def __init__(self) -> None:
        self.subjects: list[str] = []
        self.changed = threading.Condition()

    def __call__(self, case: Case, *args: Any, **options: Any) -> PreparedCase:
        with self.changed:
            self.subjects.append(case.subject)
            self.changed.notify_all()
        return load_case(case, *args, **options)

    def wait_for(self, subject: str) -> bool:
        with self.changed:
            return self.changed.wait_for(lambda: subject in self.subjects, PATIENCE)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    found = Watched()
    monkeypatch.setattr(module, "load_case", found)
    return found


def copies(case: Case, number: int) -> list[Case]:
    return [replace(case, subject=f"s{index}") for index in range(number)]


def test_the_next_few_are_loaded_while_one_is_worked_on(
    detector: Detector, cases: list[Case], watched: Watched
) -> None:
    chosen = copies(cases[-1], 9)
    load = Loader(replace(detector.data_config, num_workers=2))
    for index, case in enumerate(load.in_turn(chosen)):
        assert load(case).case == case
        last = min(index + 2, len(chosen) - 1)
        assert watched.wait_for(f"s{last}"), "loaded before its turn"
        assert len(watched.subjects) == last + 1, "and no further"
    assert sorted(watched.subjects) == [case.subject for case in chosen], "each once"


def test_a_fault_is_raised_when_its_case_is_asked_for(detector: Detector, cases: list[Case], tmp_path: Path) -> None:
    first, bad, last = copies(cases[-1], 3)
    bad = replace(bad, image=tmp_path / "gone.nii.gz")
    load = Loader(detector.data_config)
    seen = []
    for case in load.in_turn([first, bad, last]):
        if case == bad:
            with pytest.raises(InputError, match="no such file"):
                load(case)
        else:
            seen.append(load(case).case)
    assert seen == [first, last]


def test_what_the_threads_leave_out_is_loaded_when_it_is_asked_for(
    detector: Detector, cases: list[Case], watched: Watched
) -> None:
    load = Loader(detector.data_config)
    for case in load.in_turn(cases, wanted=lambda case: False):
        assert watched.subjects == []
        expected = load_case(case, detector.data_config)
        np.testing.assert_array_equal(load(case).image, expected.image)
        watched.subjects.clear()


def test_a_finished_evaluation_loads_nothing(
    detector: Detector, cases: list[Case], results: Path, watched: Watched
) -> None:
    before = (results / "cases.csv").read_bytes()
    evaluate_cases(detector, cases, results, scores=SCORES, baselines=False)
    assert watched.subjects == []
    assert (results / "cases.csv").read_bytes() == before


def test_the_files_of_a_case_are_read_once_for_both_grids(
    detector: Detector, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (case,) = (case for case in cases if case.subject == "patient19")
    fresh = replace(detector, data_config=replace(detector.data_config, cache_dir=str(tmp_path / "cache")))
    read: list[Path] = []
    original = Volume.load

    def counted(path: Path) -> Volume:
        read.append(Path(path))
        return original(path)

    monkeypatch.setattr(Volume, "load", counted)
    table = evaluate_cases(fresh, [case], tmp_path / "out", baselines=False)
    assert "native" in set(table["space"])
    assert sorted(read) == sorted([case.image, case.mask, case.lesion])


def test_one_bad_scan_ahead_fails_alone(detector: Detector, cases: list[Case], tmp_path: Path) -> None:
    good = [case for case in cases if case.dataset == "MSLUB" and case.split == "test"]
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"no image")
    chosen = [good[0], replace(good[0], subject="bad", image=broken), good[1]]
    seen: list[tuple[str, bool]] = []
    table = evaluate_cases(
        detector,
        chosen,
        tmp_path / "out",
        baselines=False,
        progress=lambda case, message: seen.append((case.subject, bool(message))),
    )
    assert seen == [(good[0].subject, False), ("bad", True), (good[1].subject, False)]
    (failed,) = failures(table).itertuples()
    assert failed.case == "bad"
    assert failed.message.startswith(f"{broken}: ")
