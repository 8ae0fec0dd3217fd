"""Scores relative to health: which healthy scans a case is compared with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from painted import count_work, healthy_cases

from brainuad.data.cohort import Case
from brainuad.data.loading import load_case
from brainuad.detector import Detector
from brainuad.errors import InputError
from brainuad.models.base import Inference
from brainuad.scoring import postprocess
from brainuad.scoring.health import HealthyMoments, HealthyStatistics
from brainuad.study import Scorer, case_seed, evaluate_cases, wide


def test_scores_relative_to_health_leave_the_scan_itself_out(
    detector: Detector, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = healthy_cases(cases, tmp_path)
    folder = tmp_path / "out"
    table = wide(evaluate_cases(detector, chosen, folder, scores=("l1_z",)))
    assert set(table["score"]) == {"random", "intensity_bright", "intensity_dark", "intensity_atlas", "l1_z"}
    healthy = [case for case in chosen if case.split == "val" and case.lesion is None]

    def raw(case: Case) -> tuple[np.ndarray, np.ndarray]:
        prepared = load_case(case, detector.data_config)
        stack = detector.reconstruct(prepared.image, case_seed(0, case)).half().float()
        found = Inference(stack, None)
        return detector.compare(prepared.image, found, prepared.mask, ("l1",))["l1"].numpy(), prepared.mask

    def expected(case: Case, others: list[Case]) -> np.ndarray:
        statistics = HealthyStatistics(["l1"], (20, 24, 15))
        for other in others:
            map, mask = raw(other)
            statistics.add({"l1": map}, mask)
        map, mask = raw(case)
        return postprocess(statistics.score("l1_z", map, mask), mask).numpy()[mask]

    found = table[table["score"] == "l1_z"].set_index("case")["scan_score"]
    for case in healthy:
        others = [other for other in healthy if other != case]
        assert found[case.subject] == pytest.approx(expected(case, others).mean(), rel=1e-3)
    patient = next(case for case in chosen if case.subject == "patient19")
    assert found["patient19"] == pytest.approx(expected(patient, healthy).mean(), rel=1e-4)
    calls = count_work(monkeypatch)
    before = (folder / "cases.csv").read_bytes()
    evaluate_cases(detector, chosen, folder, scores=("l1_z",))
    assert calls == []
    assert (folder / "cases.csv").read_bytes() == before


def test_rarity_is_that_in_the_scans_of_the_calibration(detector: Detector, cases: list[Case], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rarity: needs healthy scans to compare with"):
        evaluate_cases(detector, cases, tmp_path / "none", scores=("rarity",))

    def calibrated(high: float) -> Detector:
        shape = (20, 24, 15)
        moments = np.zeros(shape, np.float32), np.full(shape, 0.1, np.float32)
        tails = {str(part): np.linspace(0, high, 1001, dtype=np.float32) for part in detector.scores.ensemble.parts}
        return replace(detector, health=HealthyMoments(5, {"l1_ssim": moments}, tails))

    def found(calibrated: Detector, folder: Path) -> pd.Series:
        table = wide(evaluate_cases(calibrated, cases, folder, scores=("rarity",), baselines=False))
        return table.set_index("case")["scan_score"]

    folder = tmp_path / "out"
    before, after = found(calibrated(1.0), folder), found(calibrated(2.0), folder)
    assert (after < before).all()  # another calibration in the same folder is another result
    pd.testing.assert_series_equal(after, found(calibrated(2.0), tmp_path / "anew"))


def test_a_subject_is_not_compared_with_its_own_healthy_scan(
    detector: Detector, cases: list[Case], tmp_path: Path
) -> None:
    """A lesion put into a healthy validation scan."""
    chosen = [Case(**{**vars(case), "named_across": True}) for case in healthy_cases(cases, tmp_path)]
    names = {"image": chosen[0].image, "mask": chosen[0].mask, "subject": chosen[0].subject}
    sick = Case(**{**vars(chosen[-1]), **names})
    with_own, without = Scorer(detector), Scorer(detector)
    with_own.learn_health(chosen[:4], ["intensity_atlas"])
    without.learn_health(chosen[1:4], ["intensity_atlas"])
    found, expected = (s.score(sick, ["intensity_atlas"])[1].final["intensity_atlas"] for s in (with_own, without))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    with_own.healthy = []  # as if it were somebody else's
    assert not np.allclose(with_own.score(sick, ["intensity_atlas"])[1].final["intensity_atlas"], expected, rtol=1e-3)


def test_too_few_healthy_scans_to_compare_with(detector: Detector, cases: list[Case], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="l1_z: needs 3 healthy validation scans"):
        evaluate_cases(detector, cases, tmp_path / "out", scores=("l1_z",))
    assert not (tmp_path / "out").exists()


def test_without_healthy_scans_those_that_the_model_carries_are_compared_with(
    detector: Detector, cases: list[Case], tmp_path: Path
) -> None:
    chosen = healthy_cases(cases, tmp_path)
    scorer = Scorer(detector)
    scorer.learn_health(chosen[:4], ["l1_z", "intensity_atlas"])
    assert scorer.statistics is not None
    carrying = replace(detector, health=scorer.statistics.carried())
    patients = [case for case in chosen if case.lesion is not None]
    table = wide(evaluate_cases(carrying, patients, tmp_path / "out", scores=("l1_z",)))
    assert {"l1_z", "intensity_atlas"} <= set(table["score"])
    found = table[table["score"] == "l1_z"].set_index("case")["scan_score"]
    patient = next(case for case in patients if case.split == "test")
    prepared, expected = scorer.score(patient, ["l1_z"])
    assert found[patient.subject] == pytest.approx(expected.final["l1_z"][prepared.mask].mean(), rel=1e-4)
    (note,) = json.loads((tmp_path / "out" / "summary.json").read_text())["notes"]
    assert "the 4 healthy scans that the model was calibrated on" in note
    with pytest.raises(InputError, match="l2_z: needs 3 healthy validation scans"):
        evaluate_cases(carrying, patients, tmp_path / "other", scores=("l2_z",))


def test_whose_the_healthy_scans_are_matters(
    detector: Detector, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two scans turn out to be of one person: neither is compared with the other any more, also in a rerun."""
    chosen = healthy_cases(cases, tmp_path)
    corrected = [replace(case, subject="healthy0") if case.subject == "healthy1" else case for case in chosen]
    known, fresh = tmp_path / "known", tmp_path / "fresh"
    evaluate_cases(detector, chosen, known, scores=("l1_z",), baselines=False)
    before = (known / "cases.csv").read_bytes()
    for folder in (known, fresh):
        evaluate_cases(detector, corrected, folder, scores=("l1_z",), baselines=False)
    assert (known / "cases.csv").read_bytes() == (fresh / "cases.csv").read_bytes() != before


def test_a_scan_under_two_names_is_not_compared_with_itself(
    detector: Detector, cases: list[Case], tmp_path: Path
) -> None:
    chosen = healthy_cases(cases, tmp_path)[:4]
    twice = [*chosen, replace(chosen[0], subject="other name")]
    once, again = Scorer(detector), Scorer(detector)
    once.learn_health(chosen, ["intensity_atlas"])
    again.learn_health(twice, ["intensity_atlas"])
    expected, found = (s.score(chosen[0], ["intensity_atlas"])[1].final["intensity_atlas"] for s in (once, again))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_three_healthy_scans_of_two_people_are_too_few(detector: Detector, cases: list[Case], tmp_path: Path) -> None:
    chosen = healthy_cases(cases, tmp_path)[1:]
    same = [replace(case, subject="one") if case.subject in ("healthy1", "healthy2") else case for case in chosen]
    table = wide(evaluate_cases(detector, same, tmp_path / "out", scores=("l1",)))
    assert "intensity_atlas" not in set(table["score"])
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert "2 healthy validation scans of others to compare each with, for one there are 1" in summary["notes"][0]
    assert summary["cases"]["failed"] == []
    assert summary["thresholds"][0]["found_on"] == ["IXI one", "IXI one", "IXI healthy3"]
    with pytest.raises(InputError, match="l1_z: needs 2 healthy validation scans of others"):
        evaluate_cases(detector, same, tmp_path / "out", scores=("l1_z",))
