"""Evaluation of a tiny detector on a small cohort of real scans with painted lesions."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import image as mpl_image
from paper_layout import build_tree, place_scan, split_row
from scipy import ndimage
from typer.testing import CliRunner

from brainuad.cli import app
from brainuad.config import DataConfig, ModelConfig
from brainuad.data.cohort import Case, paper_cases
from brainuad.data.loading import load_case
from brainuad.data.tables import write_split
from brainuad.detector import Detector
from brainuad.errors import InputError
from brainuad.evaluate import (
    OURS,
    REFERENCE,
    Scorer,
    case_seed,
    evaluate_cases,
    failures,
    headline,
    read_cases_csv,
    wide,
)
from brainuad.evaluate.protocol import HEALTHY
from brainuad.evaluate.tables import COLUMNS, to_table
from brainuad.evaluation import average_precision, best_dice, dice, pooled_best_threshold
from brainuad.models import DiffusionModel
from brainuad.scoring import drop_small, postprocess
from brainuad.scoring.atlas import HealthyStatistics

SCORES = ("ssim_ensemble", "l1")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    """IXI with one validation and one test scan, MSLUB with two of each; every scan is another."""
    data_dir = build_tree(tmp_path_factory.mktemp("cohort"))
    for split, more in (("val", "patient08-T1"), ("test", "patient20-T1")):
        path = data_dir / "Data" / "splits" / f"MSLUB_{split}.csv"
        row = split_row(more, "Test/MSLUB", lesion=True)
        before = pd.read_csv(path).astype(object).where(lambda table: table.notna(), None).to_dict("records")
        write_split(path, [*before, row])
        place_scan(data_dir / "Data", row, ("t1",))
    found = paper_cases(data_dir, modality="t1")
    for number, case in enumerate(found):
        repaint(case, number)
    return found


def repaint(case: Case, number: int) -> None:
    """Make a scan unlike the others: another contrast, and a bright lesion somewhere else."""
    image, mask = nib.load(case.image), nib.load(case.mask)
    brain = mask.get_fdata() > 0
    values = (image.get_fdata() / 255) ** (0.8 + 0.1 * number)
    if case.lesion is not None:
        rng = np.random.default_rng(number)
        centre = np.argwhere(brain)[rng.integers(brain.sum())]
        lesion = brain & (np.linalg.norm(np.indices(brain.shape).T - centre, axis=-1).T < 5)
        values[lesion] = rng.uniform(0.8, 1.5, lesion.sum())
        nib.save(nib.Nifti1Image(lesion.astype(np.uint8), image.affine), case.lesion)
    nib.save(nib.Nifti1Image((255 * values).astype(np.float32), image.affine), case.image)


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    config = ModelConfig(
        unet_dim=8, dim_mults=(1, 2), num_res_blocks=1, attention_head_dim=8, sigma_ens=(0.5, 1.1)
    )
    torch.manual_seed(3)
    model = DiffusionModel(config).requires_grad_(False).eval()
    cache = tmp_path_factory.mktemp("cache")
    data = DataConfig(imageDim=(40, 48, 30), smoothing_iterations=0, cache_dir=str(cache))
    return Detector(model, config, data, name="tiny")


@pytest.fixture(scope="module")
def results(detector: Detector, cases: list[Case], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    evaluate_cases(detector, cases, folder, scores=SCORES, baselines=False)
    return folder


@pytest.fixture
def tidy(results: Path) -> pd.DataFrame:
    return read_cases_csv(results / "cases.csv")


@pytest.fixture
def table(tidy: pd.DataFrame) -> pd.DataFrame:
    """One row a case and score."""
    return wide(tidy)


@pytest.fixture
def summary(results: Path) -> dict[str, Any]:
    return json.loads((results / "summary.json").read_text())


def test_the_table_is_tidy(tidy: pd.DataFrame) -> None:
    assert tuple(tidy.columns) == COLUMNS
    assert not tidy.duplicated(["set", "case", "split", "score", "space", "threshold", "metric"]).any()
    assert tidy["value"].notna().all()
    assert set(tidy["space"]) == {"", "model", "native"}
    assert set(tidy["threshold"]) == {"", *HEALTHY, "validation", "oracle"}


def test_one_row_a_case_and_score(table: pd.DataFrame, cases: list[Case]) -> None:
    expected = {
        (case.dataset, case.subject, case.split, score)
        for case in cases
        if case.split != "train"
        for score in SCORES
    }
    rows = list(table[["set", "case", "split", "score"]].itertuples(index=False, name=None))
    assert len(rows) == len(expected)
    assert set(rows) == expected


def map_of(detector: Detector, case: Case, score: str) -> tuple[torch.Tensor, Any]:
    prepared = load_case(case, detector.data_config)
    stack = detector.reconstruct(prepared.image, case_seed(0, case)).half().float()  # as the cache has it
    maps = detector.compare(prepared.image, stack, prepared.mask, (score,))
    return postprocess(maps[score], prepared.mask), prepared


def test_measures_are_those_of_the_map(table: pd.DataFrame, detector: Detector, cases: list[Case]) -> None:
    """Against a direct computation, with the threshold of the two validation cases."""
    validation, test = (
        [case for case in cases if case.dataset == "MSLUB" and case.split == split]
        for split in ("val", "test")
    )
    fitted = [map_of(detector, case, "l1") for case in validation]
    threshold = pooled_best_threshold(
        [anomaly[torch.from_numpy(prepared.mask)] for anomaly, prepared in fitted],
        [prepared.lesion[prepared.mask] for _, prepared in fitted],
    )
    for case in test:
        anomaly, prepared = map_of(detector, case, "l1")
        values, lesion = anomaly.numpy()[prepared.mask], prepared.lesion[prepared.mask]
        row = table[(table["case"] == case.subject) & (table["score"] == "l1")].iloc[0]
        assert row["average_precision"] == pytest.approx(average_precision(values, lesion))
        assert row["average_precision_ratio"] == pytest.approx(row["average_precision"] / lesion.mean())
        assert row["best_dice"] == pytest.approx(best_dice(values, lesion)[0])
        assert row["chance"] == pytest.approx(lesion.mean())
        assert row["threshold@validation"] == pytest.approx(threshold, rel=5e-4), "bins of the histogram"
        predicted = drop_small(anomaly > row["threshold@validation"]).numpy()[prepared.mask]
        assert row["dice@validation"] == pytest.approx(dice(predicted, lesion))
        assert row["threshold@oracle"] == pytest.approx(best_dice(values, lesion)[1])
        names = ("true_positives", "false_positives", "true_negatives", "false_negatives")
        assert sum(row[f"{name}@validation"] for name in names) == prepared.mask.sum()
        assert row["scan_score"] == pytest.approx(values.mean())
        assert row["dice@validation"] <= row["best_dice"] + 0.1


def test_healthy_thresholds_hold_on_the_scans_they_come_from(
    detector: Detector, cases: list[Case], summary: dict[str, Any]
) -> None:
    healthy = next(case for case in cases if case.dataset == "IXI" and case.split == "val")
    anomaly, prepared = map_of(detector, healthy, "l1")
    for name, threshold in summary["thresholds"][0]["thresholds"]["l1"].items():
        fraction = float(name.removeprefix("healthy@"))
        above = (anomaly.numpy()[prepared.mask] > threshold).mean()
        assert 0.9 * fraction - 1 / prepared.mask.sum() <= above <= fraction


def test_native_space_is_the_grid_of_the_files(
    tidy: pd.DataFrame, detector: Detector, cases: list[Case]
) -> None:
    case = next(case for case in cases if case.subject == "patient19")
    native = wide(tidy, space="native").set_index(["case", "score"]).loc[("patient19", "l1")]
    brain, lesion = (nib.load(path).get_fdata() > 0 for path in (case.mask, case.lesion))
    assert native["chance"] == pytest.approx(lesion[brain | lesion].mean())
    anomaly, prepared = map_of(detector, case, "l1")
    there = nib.load(case.image).affine  # each native voxel takes its value from the model's grid
    indices = np.argwhere(brain | lesion)
    on_model = nib.affines.apply_affine(np.linalg.inv(prepared.affine) @ there, indices).T
    values = ndimage.map_coordinates(anomaly.numpy(), on_model, order=1) * brain[tuple(indices.T)]
    expected = average_precision(values, lesion[tuple(indices.T)])
    assert native["average_precision"] == pytest.approx(expected, rel=1e-3)


def test_validation_cases_are_not_measured_at_their_own_threshold(table: pd.DataFrame) -> None:
    validation = table[(table["set"] == "MSLUB") & (table["split"] == "val")]
    assert validation["average_precision"].notna().all()
    assert validation[["threshold@validation", "dice@validation"]].isna().all(axis=None)
    assert validation["dice@healthy@0.1"].notna().all()
    healthy = table[(table["set"] == "IXI") & (table["split"] == "val")]
    assert healthy[[f"above@{name}" for name in HEALTHY]].isna().all(axis=None)


def test_healthy_scans_have_no_lesion_measures(table: pd.DataFrame, tidy: pd.DataFrame) -> None:
    healthy = table[table["set"] == "IXI"]
    lesion_only = ["auroc", "average_precision", "dice@validation", "dice@healthy@0.1", "dice@oracle"]
    assert healthy[lesion_only].isna().all(axis=None)
    assert healthy["scan_score"].notna().all()
    facts = tidy[(tidy["set"] == "IXI") & (tidy["score"] == "")]
    assert "reconstruction_l1" in set(facts["metric"])
    assert "reconstruction_l1_lesion" not in set(facts["metric"])
    test = healthy[healthy["split"] == "test"]
    for name in HEALTHY:
        assert test[f"above@{name}"].between(0, 1).all()
        assert (test[f"false_positive_components@{name}"] >= 0).all()


def test_summary_says_what_made_it(summary: dict[str, Any], detector: Detector) -> None:
    assert summary["model"]["fingerprint"] == detector.fingerprint
    assert summary["protocol"] == asdict(OURS)
    assert summary["cases"] == {"evaluated": 6, "failed": []}
    healthy, lesion = summary["thresholds"]
    assert healthy["found_on"] == ["IXI IXI035"]
    assert sorted(lesion["found_on"]) == ["MSLUB patient07", "MSLUB patient08"]
    assert set(lesion["thresholds"]) == set(SCORES)
    assert "cache_dir" not in summary["data"]


def test_summary_figures_are_those_of_the_cases(
    summary: dict[str, Any], table: pd.DataFrame, results: Path
) -> None:
    group = table[(table["set"] == "MSLUB") & (table["split"] == "test") & (table["score"] == "l1")]
    figures = summary["figures"]["MSLUB"]["test"]["l1"]["model"]
    precision = figures["any"]["average_precision"]
    assert precision["mean"] == pytest.approx(group["average_precision"].mean())
    assert precision["sd"] == pytest.approx(group["average_precision"].std())
    assert precision["n"] == 2
    assert figures["validation"]["dice"]["mean"] == pytest.approx(group["dice@validation"].mean())
    rows = pd.read_csv(results / "summary.csv")
    assert {"set", "split", "score", "space", "threshold", "metric", "mean", "low", "high"} < set(
        rows.columns
    )
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


def with_lesions_of(cases: list[Case], order: list[int]) -> list[Case]:
    """Permute the lesion masks of test cases."""
    test = [case for case in cases if case.split == "test" and case.lesion is not None]
    swapped = {case: test[index].lesion for case, index in zip(test, order, strict=True)}
    return [Case(**{**vars(case), "lesion": swapped[case]}) if case in swapped else case for case in cases]


def test_test_labels_do_not_move_thresholds(
    detector: Detector, cases: list[Case], table: pd.DataFrame, summary: dict[str, Any], tmp_path: Path
) -> None:
    swapped = with_lesions_of(cases, [1, 0])
    other = wide(evaluate_cases(detector, swapped, tmp_path, scores=SCORES, baselines=False))
    assert json.loads((tmp_path / "summary.json").read_text())["thresholds"] == summary["thresholds"]
    test = table["split"] == "test"
    np.testing.assert_array_equal(other[test]["threshold@validation"], table[test]["threshold@validation"])
    assert not np.allclose(other[test]["dice@validation"].dropna(), table[test]["dice@validation"].dropna())


def test_without_validation_nothing_is_measured_at_a_threshold(
    detector: Detector, cases: list[Case], tmp_path: Path
) -> None:
    test = [case for case in cases if case.split == "test"]
    table = evaluate_cases(detector, test, tmp_path, scores=("l1",), baselines=False)
    assert set(table["threshold"]) == {"", "oracle"}
    assert wide(table)["best_dice"].notna().sum() == 2
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert all(entry["thresholds"] is None for entry in summary["thresholds"])
    assert all("no validation case" in entry["why"] for entry in summary["thresholds"])


def test_a_set_alone_keeps_the_thresholds_of_healthy_scans(
    detector: Detector, cases: list[Case], tidy: pd.DataFrame, tmp_path: Path
) -> None:
    alone = evaluate_cases(detector, cases, tmp_path, sets=["MSLUB"], scores=SCORES, baselines=False)
    assert set(alone["set"]) == {"MSLUB"}
    pd.testing.assert_frame_equal(alone, tidy[tidy["set"] == "MSLUB"].reset_index(drop=True))


def test_failed_cases_are_rows(detector: Detector, cases: list[Case], tmp_path: Path) -> None:
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"no image")
    gone = tmp_path / "gone.nii.gz"
    changed = []
    for case in cases:
        image = {"patient07": broken, "patient19": gone}.get(case.subject, case.image)
        changed.append(Case(**{**vars(case), "image": image}))
    seen: list[tuple[str, str]] = []
    table = evaluate_cases(
        detector,
        changed,
        tmp_path / "out",
        scores=SCORES,
        baselines=False,
        progress=lambda case, message: seen.append((case.subject, message)),
    )
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
    detector: Detector,
    cases: list[Case],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    bad, good = (case for case in cases if case.dataset == "MSLUB" and case.split == "test")
    bad_seed, original = case_seed(5, bad), Detector.reconstruct  # a seed that no cache knows

    def fail_once(self: Detector, image: Any, seed: int = 0, *, draws: int = 1) -> torch.Tensor:
        if seed == bad_seed:
            raise error
        return original(self, image, seed, draws=draws)

    monkeypatch.setattr(Detector, "reconstruct", fail_once)
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

    monkeypatch.setattr(Detector, "reconstruct", fail)
    with pytest.raises(TypeError, match="a bug"):
        evaluate_cases(detector, cases, tmp_path, seed=6)


def count_work(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The scores that are computed, a case an entry."""
    calls: list[tuple[str, ...]] = []
    original = Detector.compare

    def counted(self: Detector, image: Any, stack: Any, mask: Any, names: Any) -> Any:
        calls.append(tuple(names))
        return original(self, image, stack, mask, names)

    monkeypatch.setattr(Detector, "compare", counted)
    return calls


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
    monkeypatch.setattr(Detector, "reconstruct", lambda *args, **kwargs: reconstructed.append(args))
    table = evaluate_cases(detector, cases, folder, scores=(*SCORES, "l2"), baselines=False)
    assert calls == [("l2",)] * 6
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


def test_reference_protocol(
    detector: Detector, cases: list[Case], table: pd.DataFrame, tmp_path: Path
) -> None:
    reference = wide(
        evaluate_cases(detector, cases, tmp_path, scores=SCORES, baselines=False, protocol=REFERENCE)
    )
    test = reference[(reference["set"] == "MSLUB") & (reference["split"] == "test")]
    voxels = 20 * 24 * 15
    names = ("true_positives", "false_positives", "true_negatives", "false_negatives")
    counts = test[[f"{name}@validation" for name in names]].sum(axis=1)
    assert (counts == voxels).all()
    np.testing.assert_array_equal(
        test["false_positive_rate@validation"], test["false_discovery_rate@validation"]
    )
    ours = table[(table["set"] == "MSLUB") & (table["split"] == "test")]
    assert (test["chance"].to_numpy() < ours["chance"].to_numpy()).all()
    assert (test["auroc"].to_numpy() > ours["auroc"].to_numpy() - 0.2).all()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["model"]["settings"]["shared_noise"] is True
    assert summary["thresholds"][1]["kind"].startswith("greedy")


def test_without_post_processing(detector: Detector, cases: list[Case], tmp_path: Path) -> None:
    case = next(case for case in cases if case.subject == "patient19")
    row = wide(evaluate_cases(detector, [case], tmp_path, baselines=False, postprocess=False)).iloc[0]
    prepared = load_case(case, detector.data_config)
    stack = detector.reconstruct(prepared.image, case_seed(0, case)).half().float()
    anomaly = detector.compare(prepared.image, stack, prepared.mask)["ssim_ensemble"]
    expected = average_precision(anomaly.numpy()[prepared.mask], prepared.lesion[prepared.mask])
    assert row["average_precision"] == pytest.approx(expected)


def test_missed_by_the_brain_mask_is_missed(detector: Detector, cases: list[Case], tmp_path: Path) -> None:
    """Lesion outside the brain mask counts against the method."""
    case = next(case for case in cases if case.subject == "patient19")
    mask, lesion = nib.load(case.mask), nib.load(case.lesion)
    cut = tmp_path / "mask.nii.gz"
    outside = (mask.get_fdata() > 0) & ~(lesion.get_fdata() > 0)
    nib.save(nib.Nifti1Image(outside.astype(np.uint8), mask.affine), cut)
    changed = Case(**{**vars(case), "mask": cut})
    row = wide(evaluate_cases(detector, [changed], tmp_path / "out", baselines=False)).iloc[0]
    assert row["chance"] > 0
    assert row["best_dice"] < 0.5


def test_unusable_requests(detector: Detector, cases: list[Case], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There are: IXI, MSLUB"):
        evaluate_cases(detector, cases, tmp_path, sets=["WMH"])
    with pytest.raises(InputError, match="unknown score"):
        evaluate_cases(detector, cases, tmp_path, scores=("sim_ensemble",))
    with pytest.raises(InputError, match="no test case"):
        evaluate_cases(detector, [case for case in cases if case.split == "train"], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_seeds_differ_by_case_and_not_by_company(cases: list[Case]) -> None:
    seeds = {case_seed(0, case) for case in cases}
    assert len(seeds) == len({case.subject for case in cases})
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert not math.isnan(case_seed(1, cases[0]))
    assert case_seed(1, cases[0]) not in seeds


def test_the_headline_shows_means_over_test_scans_that_were_scored() -> None:
    rows = [
        {
            "set": "A",
            "case": str(number),
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
    text = headline(to_table(rows))
    assert "0.3000" in text
    assert "0.9000" not in text


def healthy_cases(cases: list[Case], folder: Path) -> list[Case]:
    """Four healthy validation scans, alike but for their contrast, and the patients of MSLUB."""
    (source,) = (case for case in cases if case.dataset == "IXI" and case.split == "val")
    image, mask = nib.load(source.image), nib.load(source.mask)
    found = []
    for number in range(4):
        values = (image.get_fdata() / 255) ** (0.9 + 0.1 * number)
        path = folder / f"healthy{number}.nii.gz"
        nib.save(nib.Nifti1Image((255 * values).astype(np.float32), mask.affine), path)
        found.append(Case(**{**vars(source), "image": path, "subject": f"healthy{number}"}))
    return found + [case for case in cases if case.dataset == "MSLUB"]


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
        return detector.compare(prepared.image, stack, prepared.mask, ("l1",))["l1"].numpy(), prepared.mask

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
    found, expected = (
        s.score(sick, ["intensity_atlas"]).maps["intensity_atlas"] for s in (with_own, without)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    with_own.healthy = []  # as if it were somebody else's
    assert not np.allclose(
        with_own.score(sick, ["intensity_atlas"]).maps["intensity_atlas"], expected, rtol=1e-3
    )


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
    expected = scorer.score(patient, ["l1_z"])
    inside = expected.prepared.mask
    assert found[patient.subject] == pytest.approx(expected.maps["l1_z"][inside].mean(), rel=1e-4)
    (note,) = json.loads((tmp_path / "out" / "summary.json").read_text())["notes"]
    assert "the 4 healthy scans that the model was calibrated on" in note
    with pytest.raises(InputError, match="l2_z: needs 3 healthy validation scans"):
        evaluate_cases(carrying, patients, tmp_path / "other", scores=("l2_z",))


def test_strata_tests_between_scores_and_figures(
    detector: Detector, cases: list[Case], tmp_path: Path
) -> None:
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


def test_several_scans_of_one_subject_are_one_subject(
    detector: Detector, cases: list[Case], tmp_path: Path
) -> None:
    first, second = (case for case in cases if case.dataset == "MSLUB" and case.split == "test")
    same = Case(**{**vars(second), "subject": first.subject})
    table = evaluate_cases(detector, [first, same], tmp_path, scores=("l1",), baselines=False)
    assert set(table["case"]) == {f"{first.subject} {case.image.name}" for case in (first, same)}
    summary = json.loads((tmp_path / "summary.json").read_text())
    figures = summary["figures"]["MSLUB"]["test"]["l1"]["model"]["any"]["average_precision"]
    assert figures["n"] == 1
    assert figures["mean"] == pytest.approx(wide(table)["average_precision"].mean())


def test_the_command_counts_the_voxels_it_is_told_to(
    detector: Detector, cases: list[Case], tmp_path: Path
) -> None:
    detector.save(tmp_path / "model")
    (case,) = (case for case in cases if case.subject == "patient19")
    manifest = tmp_path / "scans.csv"
    manifest.write_text(
        "subject,image,mask,seg,label,split,site\n"
        f"{case.subject},{case.image},{case.mask},{case.lesion},1,test,Ljubljana\n"
    )
    words = ["evaluate", tmp_path / "model", manifest, "-o", tmp_path / "out", "--device", "cpu"]
    words += ["--scores", "l1", "--voxels", "grid", "--no-native"]
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, done.output
    table = read_cases_csv(tmp_path / "out" / "cases.csv")
    assert set(table["space"]) == {"", "model"}
    assert set(table["score"]) == {"", "random", "intensity_bright", "intensity_dark", "l1"}
    lesion = load_case(case, detector.data_config).lesion
    assert set(table[table["metric"] == "chance"]["value"].round(9)) == {round(lesion.mean(), 9)}
