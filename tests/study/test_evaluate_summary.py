"""The summary, its pages and its figures say what the cases say."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib import image as mpl_image
from painted import SCORES, map_of

from brainuad.data.cohort import Case
from brainuad.detector import Detector
from brainuad.evaluation import average_precision
from brainuad.study import OURS, evaluate_cases, headline, wide
from brainuad.study.summary import means, scan_detection
from brainuad.study.tables import COLUMNS, Subject


def test_summary_says_what_made_it(summary: dict[str, Any], detector: Detector) -> None:
    assert summary["model"]["fingerprint"] == detector.fingerprint
    assert summary["protocol"] == asdict(OURS)
    assert summary["cases"] == {"evaluated": 6, "failed": []}
    healthy, lesion = summary["thresholds"]
    assert healthy["found_on"] == ["IXI IXI035"]
    assert sorted(lesion["found_on"]) == ["MSLUB patient07", "MSLUB patient08"]
    assert set(lesion["thresholds"]) == set(SCORES)
    assert "cache_dir" not in summary["data"]


def test_summary_figures_are_those_of_the_cases(summary: dict[str, Any], table: pd.DataFrame, results: Path) -> None:
    group = table[(table["set"] == "MSLUB") & (table["split"] == "test") & (table["score"] == "l1")]
    figures = summary["figures"]["MSLUB"]["test"]["l1"]["model"]
    precision = figures["any"]["average_precision"]
    assert precision["mean"] == pytest.approx(group["average_precision"].mean())
    assert precision["sd"] == pytest.approx(group["average_precision"].std())
    assert precision["n"] == 2
    assert figures["validation"]["dice"]["mean"] == pytest.approx(group["dice@validation"].mean())
    rows = pd.read_csv(results / "summary.csv")
    assert {"set", "split", "score", "space", "threshold", "metric", "mean", "low", "high"} < set(rows.columns)
    assert "validation" not in summary["figures"]["IXI"]["test"]["l1"]["model"] or (
        "dice" not in summary["figures"]["IXI"]["test"]["l1"]["model"]["validation"]
    )


def test_pooled_figures_are_those_of_all_voxels(
    summary: dict[str, Any], table: pd.DataFrame, detector: Detector, cases: list[Case]
) -> None:
    test = [case for case in cases if case.dataset == "MSLUB" and case.split == "test"]
    maps = [map_of(detector, case, "l1") for case in test]
    values = np.concatenate([anomaly.numpy()[prepared.mask] for anomaly, prepared in maps])
    lesion = np.concatenate([prepared.lesion[prepared.mask] for _, prepared in maps])
    found = summary["pooled"]["MSLUB"]["l1"]["model"]
    expected = average_precision(values, lesion)
    low, high = found["any"]["average_precision_bounds"]
    assert low <= expected <= high
    assert found["any"]["average_precision"] == pytest.approx(expected, abs=1e-3)
    assert found["any"]["chance"] == pytest.approx(lesion.mean())
    rows = table[(table["set"] == "MSLUB") & (table["split"] == "test") & (table["score"] == "l1")]
    overlap = 2 * rows["true_positives@validation"].sum()
    wrong = rows["false_positives@validation"].sum() + rows["false_negatives@validation"].sum()
    assert found["validation"]["dice"] == pytest.approx(overlap / (overlap + wrong))


def test_lesions_are_counted_over_scans(summary: dict[str, Any], table: pd.DataFrame) -> None:
    rows = table[(table["set"] == "MSLUB") & (table["split"] == "test") & (table["score"] == "l1")]
    found = summary["lesion_wise"]["MSLUB"]["l1"]["healthy@0.1"]
    assert found["lesions"] == rows["lesions@healthy@0.1"].sum() > 0
    assert found["sensitivity"] == pytest.approx(rows["lesions_found@healthy@0.1"].sum() / found["lesions"])
    assert sum(row["lesions"] for row in found["by_size"].values()) == found["lesions"]
    wrong = rows["false_positive_components@healthy@0.1"]
    assert found["false_positives_per_scan"] == pytest.approx(wrong.mean())
    every = [at for of_score in summary["lesion_wise"]["MSLUB"].values() for at in of_score.values()]
    for row in every:
        wrong_by_size = [of_size["false_positives_per_scan"] for of_size in row["by_size"].values()]
        assert sum(wrong_by_size) == pytest.approx(row["false_positives_per_scan"])
    assert any(of_size["precision"] for row in every for of_size in row["by_size"].values())
    by_size = found["by_size"].values()
    assert sum(row["found"] for row in found["by_contrast"].values()) == found["found"]
    froc = summary["froc"]["MSLUB"]["l1"]
    assert froc["mean"] == pytest.approx(np.mean(list(froc["at"].values())))
    shares = [row["lesions"] / found["lesions"] for row in by_size if row["lesions"]]
    assert np.dot(shares, list(froc["by_size"].values())) == pytest.approx(froc["mean"])


def test_chance_stands_beside_average_precision(results: Path, summary: dict[str, Any]) -> None:
    text = (results / "summary.md").read_text()
    heads = [line for line in text.splitlines() if line.startswith("| score") and "average precision" in line]
    assert len(heads) >= 3, "in model and native space, and pooled"
    assert all("| chance |" in line for line in heads)
    assert "& chance &" in (results / "latex" / "mslub-native.tex").read_text()


def test_pages_show_the_figures(summary: dict[str, Any], results: Path) -> None:
    text = (results / "summary.md").read_text()
    figures = summary["figures"]["MSLUB"]["test"]["l1"]["model"]
    line = next(line for line in text.splitlines() if line.startswith("| l1 ") and "%" not in line)
    assert text.index("## MSLUB") > 0
    section = text[text.index("## MSLUB") :]
    line = next(line for line in section.splitlines() if line.startswith("| l1 "))
    assert f"{figures['any']['average_precision']['mean']:.3f}" in line
    assert f"{figures['validation']['dice']['mean']:.3f}" in line
    latex = (results / "latex" / "mslub-model.tex").read_text()
    assert f"{figures['any']['best_dice']['mean']:.3f}" in latex
    assert r"ssim\_ensemble" in latex


def test_the_headline_shows_means_over_test_scans_that_were_scored() -> None:
    rows = [
        {
            "set": "A",
            "case": str(number),
            "subject": str(number),
            "split": split,
            "score": "l1",
            "space": "model",
            "threshold": "",
            "metric": "best_dice",
            "value": dice,
            "message": "",
        }
        for number, (split, dice) in enumerate([("test", 0.2), ("test", 0.4), ("val", 0.9)])
    ]
    text = headline(pd.DataFrame(rows, columns=list(COLUMNS)))
    assert "0.300" in text
    assert "0.900" not in text


def cohort_of(
    subjects: dict[str, tuple[bool, list[float | None]]], metric: str
) -> tuple[pd.DataFrame, dict[tuple[str, str, str], Subject]]:
    """The table of a cohort: whether each subject has a lesion, and the values of its scans, None for a failed one."""
    rows, known = [], {}
    for name, (ill, values) in subjects.items():
        for number, value in enumerate(values):
            case = f"{name} {number}"
            known["S", "test", case] = Subject(name, annotated=ill, healthy=not ill, age=None, extra=())
            row = {"set": "S", "case": case, "subject": name, "split": "test", "score": "", "space": ""}
            row |= {"threshold": "", "metric": "failed", "value": 1.0, "message": "gone"}
            if value is not None:
                row |= {"score": "l1", "space": "model", "metric": metric, "value": value, "message": ""}
            rows.append(row)
    return pd.DataFrame(rows, columns=list(COLUMNS)), known


@pytest.mark.parametrize(
    ("subjects", "failed", "expected"),
    [
        ({"a": (True, [0.8]), "b": (True, [None])}, 1, 0.4),
        # healthy scans have no average precision that could have been 0
        ({"a": (True, [0.8]), "b": (True, [0.6]), "c": (False, [None]), "d": (False, [None])}, 2, 0.7),
        # the subject is what counts, not the scan
        ({"a": (True, [0.8, 0.8]), "b": (True, [None, None])}, 2, 0.4),
        ({"a": (True, [0.8, None]), "b": (True, [0.6])}, 1, 0.5),
    ],
)
def test_failed_scans_count_as_0_where_that_could_be(
    subjects: dict[str, tuple[bool, list[float | None]]], failed: int, expected: float
) -> None:
    summary = means(*cohort_of(subjects, "average_precision"))
    row = summary[summary["metric"] == "average_precision"].iloc[0]
    assert row["n_failed"] == failed
    assert row["mean_failed_as_0"] == pytest.approx(expected)


def test_several_scans_of_a_subject_are_one_in_scan_detection() -> None:
    rng = np.random.default_rng(4)
    values = {f"{kind}{i}": (kind == "p", rng.normal(0.6 * (kind == "p"), 1)) for kind in "ph" for i in range(8)}
    once, often = (
        scan_detection(wide(table), known)
        for table, known in (
            cohort_of({name: (ill, [value] * scans) for name, (ill, value) in values.items()}, "scan_score")
            for scans in (1, 5)
        )
    )
    assert once["S"]["l1"] == pytest.approx(often["S"]["l1"])


def test_strata_tests_between_scores_and_figures(detector: Detector, cases: list[Case], tmp_path: Path) -> None:
    (patient,) = (case for case in cases if case.subject == "patient19")
    test = [
        Case(
            **{
                **vars(patient),
                "subject": f"p{i}",
                "age": 30 + 15 * i,
                "extra": (("site", "AB"[i % 2]), ("id", str(i))),
            }
        )
        for i in range(4)
    ]
    healthy = [case for case in cases if case.dataset == "IXI" and case.split == "val"]
    chosen = [*healthy, *test]
    evaluate_cases(detector, chosen, tmp_path, scores=("l1", "l2"), baselines=False, figures=True)
    summary = json.loads((tmp_path / "summary.json").read_text())
    strata = {(row["stratum"], row["level"]): row["n"] for row in summary["strata"] if row["score"] == "l1"}
    assert strata == {("site", "A"): 2, ("site", "B"): 2}, "ages in three classes of four are too many"
    compared = summary["comparisons"]["MSLUB"]
    assert {compared["best"], compared["against"][0]["score"]} == {"l1", "l2"}
    assert compared["against"][0]["n"] == 4
    assert compared["against"][0]["p"] <= compared["against"][0]["p_holm"] <= 1
    names = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert names == {
        "precision_recall", "froc", "per_case", "dice_threshold", "mslub-best", "mslub-median", "mslub-worst",
    }  # fmt: skip
    for path in (tmp_path / "figures").iterdir():
        assert mpl_image.imread(path).std() > 0.02
    curves = json.loads((tmp_path / "curves.json").read_text())["MSLUB"]["l1"]
    recall = curves["precision_recall"]["recall"]
    assert recall == sorted(recall)
    assert recall[-1] == 1
    assert curves["precision_recall"]["precision"][-1] >= curves["precision_recall"]["chance"]
    assert len(curves["froc"]["threshold"]) > 10


def test_several_scans_of_one_subject_are_one_subject(detector: Detector, cases: list[Case], tmp_path: Path) -> None:
    first, second = (case for case in cases if case.dataset == "MSLUB" and case.split == "test")
    same = Case(**{**vars(second), "subject": first.subject})
    table = evaluate_cases(detector, [first, same], tmp_path, scores=("l1",), baselines=False)
    assert set(table["case"]) == {f"{first.subject} {case.image.name}" for case in (first, same)}
    summary = json.loads((tmp_path / "summary.json").read_text())
    figures = summary["figures"]["MSLUB"]["test"]["l1"]["model"]["any"]["average_precision"]
    assert figures["n"] == 1
    assert figures["mean"] == pytest.approx(wide(table)["average_precision"].mean())
