"""Bad cases, and runs that go on where they were."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from painted import SCORES, count_work, written

from brainuad.data.cohort import Case
from brainuad.detector import Detector
from brainuad.errors import DeviceError
from brainuad.models.base import Inference
from brainuad.study import case_seed, evaluate_cases, failures, read_cases_csv, wide


def test_failed_cases_are_rows(detector: Detector, cases: list[Case], tmp_path: Path) -> None:
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"no image")
    gone = tmp_path / "gone.nii.gz"
    changed = []
    for case in cases:
        image = {"patient07": broken, "patient19": gone}.get(case.subject, case.image)
        changed.append(Case(**{**vars(case), "image": image}))
    seen: list[tuple[str, str]] = []
    stages: list[str] = []
    table = evaluate_cases(
        detector,
        changed,
        tmp_path / "out",
        scores=SCORES,
        baselines=False,
        progress=lambda case, message: seen.append((case.subject, message)),
        stage=stages.append,
    )
    assert [name for name in stages if name.startswith("patient20: ")] == [
        f"patient20: {step}" for step in ("reconstruct", "score", "measure")
    ]
    failed = failures(table)
    assert set(failed["case"]) == {"patient07", "patient19"}
    assert len(failed) == 2, "one row a case"
    assert set(failed["value"]) == {1.0}
    assert failed[failed["case"] == "patient19"]["message"].str.contains("no such file").all()
    done = wide(table).set_index("case").loc["patient20"]
    assert done["dice@validation"].notna().all(), "the other validation case sets the threshold"
    assert len(seen) == 6
    assert str(broken) in dict(seen)["patient07"]
    assert dict(seen)["patient20"] == ""
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {entry["case"] for entry in summary["cases"]["failed"]} == {"patient07", "patient19"}
    assert summary["thresholds"][1]["found_on"] == ["MSLUB patient08"]
    figures = summary["figures"]["MSLUB"]["test"]["l1"]["model"]["any"]["average_precision"]
    assert (figures["n"], figures["n_failed"]) == (1, 1)
    assert figures["mean_failed_as_0"] == pytest.approx(figures["mean"] / 2)
    assert "2 failed" not in (tmp_path / "out" / "summary.md").read_text()
    assert "1 test scans, 1 failed" in (tmp_path / "out" / "summary.md").read_text()


def test_reconstruction_that_is_no_number_is_a_failed_case(
    detector: Detector, cases: list[Case], tmp_path: Path
) -> None:
    broken = Detector.with_settings(detector, noise_draws=2)
    next(broken.model.parameters()).view(-1)[0] = torch.nan
    table = evaluate_cases(broken, [cases[-1]], tmp_path)
    assert failures(table)["message"].str.contains("NaN").all()
    assert len(table) == 1


@pytest.mark.parametrize(
    "error",
    [ValueError("odd shape"), RuntimeError("CUDA out\nof memory"), MemoryError(), OSError(5, "I/O error")],
    ids=lambda error: type(error).__name__,
)
def test_one_bad_case_does_not_stop_the_others(
    detector: Detector, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    bad, good = (case for case in cases if case.dataset == "MSLUB" and case.split == "test")
    bad_seed, original = case_seed(5, bad), Detector.infer  # a seed that no cache knows

    def fail_once(self: Detector, image: Any, mask: Any, seed: int = 0, names: Any = ()) -> Inference:
        if seed == bad_seed:
            raise error
        return original(self, image, mask, seed, names)

    monkeypatch.setattr(Detector, "infer", fail_once)
    table = evaluate_cases(detector, [bad, good], tmp_path, baselines=False, seed=5)
    assert set(wide(table)["case"]) == {good.subject}
    (row,) = failures(table).itertuples()
    assert row.case == bad.subject
    message = row.message
    assert message.startswith(f"{bad.image}: {type(error).__name__}: ")
    assert "\n" not in message


def test_a_bug_is_no_failed_case(
    detector: Detector, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise TypeError("a bug")

    monkeypatch.setattr(Detector, "infer", fail)
    with pytest.raises(TypeError, match="a bug"):
        evaluate_cases(detector, cases, tmp_path, seed=6)


def test_a_broken_device_ends_the_run_and_blames_no_scan(
    detector: Detector, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *_ = (case for case in cases if case.split == "test")
    original = Detector.infer

    def break_after_one(self: Detector, image: Any, mask: Any, seed: int = 0, names: Any = ()) -> Inference:
        if seed != case_seed(8, first):
            raise DeviceError("cuda", RuntimeError("CUDA error: unspecified launch failure"))
        return original(self, image, mask, seed, names)

    tests = [case for case in cases if case.split == "test"]
    with monkeypatch.context() as patch:
        patch.setattr(Detector, "infer", break_after_one)
        with pytest.raises(DeviceError, match="cuda: stopped working"):
            evaluate_cases(detector, tests, tmp_path, scores=SCORES, baselines=False, seed=8)
    assert not (tmp_path / "cases.csv").exists()
    calls = count_work(monkeypatch)
    table = evaluate_cases(detector, tests, tmp_path, scores=SCORES, baselines=False, seed=8)
    assert len(calls) == len(tests) - 1
    assert failures(table).empty


def test_a_device_that_breaks_after_the_network_ends_the_run_too(
    detector: Detector, cases: list[Case], results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reconstructions come from the cache, so nothing but scores is computed."""

    def fail(*args: Any, **given: Any) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(Detector, "compare", fail)
    broken = torch.zeros(1, device="meta")  # which cannot be read, as from a device that is gone
    monkeypatch.setattr(torch, "zeros", lambda *args, **options: broken)
    with pytest.raises(DeviceError, match=r"cpu: stopped working \(CUDA error: unspecified"):
        evaluate_cases(detector, cases, tmp_path, scores=SCORES, baselines=False)


def test_a_rerun_computes_nothing_and_gives_the_same(
    detector: Detector, cases: list[Case], results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("cases.csv", "summary.csv", "summary.json", "summary.md", "curves.json")
    before = {name: (results / name).read_bytes() for name in names}
    calls = count_work(monkeypatch)
    evaluate_cases(detector, cases, results, scores=SCORES, baselines=False)
    assert calls == []
    assert {name: (results / name).read_bytes() for name in names} == before


def copy_run(results: Path, folder: Path) -> Path:
    shutil.copytree(results, folder)
    return folder


def test_a_broken_run_goes_on(
    detector: Detector, cases: list[Case], results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a kill in the middle of writing the last case's line."""
    folder = copy_run(results, tmp_path / "out")
    text = (folder / "progress.jsonl").read_text()
    (folder / "progress.jsonl").write_text(text[: text.rindex('{"key"') + 40])
    calls = count_work(monkeypatch)
    evaluate_cases(detector, cases, folder, scores=SCORES, baselines=False)
    assert calls == [("l1",)]
    assert written(folder) == written(results), "what was known is not written again"
    assert (folder / "cases.csv").read_bytes() == (results / "cases.csv").read_bytes()


def test_damaged_counts_are_made_again(
    detector: Detector, cases: list[Case], results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_run(results, tmp_path / "out")
    first, second = sorted((folder / "histograms").iterdir())[:2]
    first.write_bytes(first.read_bytes()[:100])
    second.unlink()
    calls = count_work(monkeypatch)
    evaluate_cases(detector, cases, folder, scores=SCORES, baselines=False)
    assert calls == [SCORES, SCORES]
    assert (folder / "summary.json").read_bytes() == (results / "summary.json").read_bytes()


def test_another_score_is_all_the_work(
    detector: Detector, cases: list[Case], results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_run(results, tmp_path / "out")
    calls = count_work(monkeypatch)
    reconstructed = []
    monkeypatch.setattr(Detector, "infer", lambda *args, **kwargs: reconstructed.append(args))
    table = evaluate_cases(detector, cases, folder, scores=(*SCORES, "l2"), baselines=False)
    assert calls == [("l2",)] * 6
    assert set(written(folder).values()) == {1}, "what was known is not written again"
    assert reconstructed == [], "the cache has them"
    both = read_cases_csv(results / "cases.csv")
    pd.testing.assert_frame_equal(table[table["score"].isin(["", *SCORES])].reset_index(drop=True), both)


def test_other_seed_is_other_work(
    detector: Detector, cases: list[Case], results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_run(results, tmp_path / "out")
    calls = count_work(monkeypatch)
    test = [case for case in cases if case.split == "test"]
    evaluate_cases(detector, test, folder, scores=SCORES, baselines=False, seed=1)
    assert len(calls) == 3
