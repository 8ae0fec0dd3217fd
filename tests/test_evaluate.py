"""Evaluation of a tiny detector on a small cohort of real scans with painted lesions."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from paper_layout import build_tree, place_scan, split_row

from brainuad.config import DataConfig, ModelConfig
from brainuad.data.cohort import Case, paper_cases
from brainuad.data.loading import load_case
from brainuad.data.tables import write_split
from brainuad.detector import Detector
from brainuad.errors import InputError
from brainuad.evaluate import OURS, REFERENCE, evaluate_cases, headline
from brainuad.evaluate.cohort import case_seed
from brainuad.evaluate.measures import MEASURES
from brainuad.evaluate.tables import to_table
from brainuad.evaluation import average_precision, best_dice, dice, pooled_best_threshold
from brainuad.models import DiffusionModel
from brainuad.scoring import drop_small, postprocess

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
    evaluate_cases(detector, cases, folder, scores=SCORES)
    return folder


@pytest.fixture
def table(results: Path) -> pd.DataFrame:
    return pd.read_csv(results / "cases.csv", keep_default_na=True)


@pytest.fixture
def summary(results: Path) -> dict[str, Any]:
    return json.loads((results / "summary.json").read_text())


def test_one_row_a_case_and_score(table: pd.DataFrame, cases: list[Case]) -> None:
    expected = {
        (case.dataset, case.subject, case.split, score)
        for case in cases
        if case.split != "train"
        for score in SCORES
    }
    rows = list(table[["set", "subject", "split", "score"]].itertuples(index=False, name=None))
    assert len(rows) == len(expected)
    assert set(rows) == expected
    assert set(table["status"]) == {"ok"}
    assert set(MEASURES) < set(table.columns)


def map_of(detector: Detector, case: Case, score: str) -> tuple[torch.Tensor, Any]:
    prepared = load_case(case, detector.data_config)
    maps = detector.score_maps(prepared.image, prepared.mask, (score,), case_seed(0, case))
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
        row = table[(table["subject"] == case.subject) & (table["score"] == "l1")].iloc[0]
        assert row["average_precision"] == pytest.approx(average_precision(values, lesion))
        assert row["best_dice"] == pytest.approx(best_dice(values, lesion)[0])
        assert row["chance"] == pytest.approx(lesion.mean())
        assert row["threshold"] == pytest.approx(threshold)
        predicted = drop_small(anomaly > threshold).numpy()[prepared.mask]
        assert row["dice"] == pytest.approx(dice(predicted, lesion))
        counts = row[["true_positives", "false_positives", "true_negatives", "false_negatives"]]
        assert counts.sum() == prepared.mask.sum()
        assert row["scan_score"] == pytest.approx(values.mean())
        assert row["dice"] <= row["best_dice"] + 0.1


def test_validation_cases_are_not_measured_at_their_own_threshold(table: pd.DataFrame) -> None:
    validation = table[(table["set"] == "MSLUB") & (table["split"] == "val")]
    assert validation["average_precision"].notna().all()
    assert validation[["threshold", "dice", "recall"]].isna().all(axis=None)


def test_healthy_scans_have_no_lesion_measures(table: pd.DataFrame) -> None:
    healthy = table[table["set"] == "IXI"]
    assert healthy[["auroc", "average_precision", "dice", "l1_lesion", "dice_fpr0.1"]].isna().all(axis=None)
    assert healthy[["l1", "l2", "l1_healthy", "scan_score"]].notna().all(axis=None)
    test = healthy[healthy["split"] == "test"]
    for fraction in (0.1, 0.05, 0.01):
        assert test[f"above_fpr{fraction:g}"].between(0, 1).all()


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
    figures = summary["figures"]["MSLUB"]["test"]["l1"]["average_precision"]
    assert figures["mean"] == pytest.approx(group["average_precision"].mean())
    assert figures["sd"] == pytest.approx(group["average_precision"].std())
    assert figures["n"] == 2
    rows = pd.read_csv(results / "summary.csv")
    assert list(rows.columns) == ["set", "split", "score", "measure", "mean", "sd", "n", "low", "high"]
    assert "dice" not in summary["figures"]["IXI"]["test"]["l1"]


def with_lesions_of(cases: list[Case], order: list[int]) -> list[Case]:
    """Permute the lesion masks of test cases."""
    test = [case for case in cases if case.split == "test" and case.lesion is not None]
    swapped = {case: test[index].lesion for case, index in zip(test, order, strict=True)}
    return [Case(**{**vars(case), "lesion": swapped[case]}) if case in swapped else case for case in cases]


def test_test_labels_do_not_move_thresholds(
    detector: Detector, cases: list[Case], table: pd.DataFrame, summary: dict[str, Any], tmp_path: Path
) -> None:
    other = evaluate_cases(detector, with_lesions_of(cases, [1, 0]), tmp_path, scores=SCORES)
    assert json.loads((tmp_path / "summary.json").read_text())["thresholds"] == summary["thresholds"]
    test = table["split"] == "test"
    np.testing.assert_array_equal(other[test]["threshold"], table[test]["threshold"])
    assert not np.allclose(other[test]["dice"].dropna(), table[test]["dice"].dropna())


def test_without_validation_nothing_is_measured_at_a_threshold(
    detector: Detector, cases: list[Case], tmp_path: Path
) -> None:
    table = evaluate_cases(
        detector, [case for case in cases if case.split == "test"], tmp_path, scores=("l1",)
    )
    assert table[["threshold", "dice", "above_fpr0.1"]].isna().all(axis=None)
    assert table["best_dice"].notna().sum() == 2
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert all(entry["thresholds"] is None for entry in summary["thresholds"])
    assert all("no validation case" in entry["why"] for entry in summary["thresholds"])


def test_a_set_alone_keeps_the_thresholds_of_healthy_scans(
    detector: Detector, cases: list[Case], table: pd.DataFrame, tmp_path: Path
) -> None:
    alone = evaluate_cases(detector, cases, tmp_path, sets=["MSLUB"], scores=SCORES)
    assert set(alone["set"]) == {"MSLUB"}
    pd.testing.assert_frame_equal(
        alone[list(MEASURES)], table[table["set"] == "MSLUB"][list(MEASURES)].reset_index(drop=True)
    )


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
        progress=lambda case, rows: seen.append((case.subject, rows[0]["status"])),
    )
    failed = table[table["status"] == "failed"]
    assert set(failed["subject"]) == {"patient07", "patient19"}
    assert len(failed) == 2 * len(SCORES)
    assert failed[failed["subject"] == "patient19"]["message"].str.contains("no such file").all()
    done = table[table["subject"] == "patient20"]
    assert done["dice"].notna().all(), "the other validation case sets the threshold"
    assert len(seen) == 6
    assert dict(seen)["patient07"] == "failed"
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {entry["subject"] for entry in summary["cases"]["failed"]} == {"patient07", "patient19"}
    assert summary["thresholds"][1]["found_on"] == ["MSLUB patient08"]


def test_reconstruction_that_is_no_number_is_a_failed_case(
    detector: Detector, cases: list[Case], tmp_path: Path
) -> None:
    broken = Detector.with_settings(detector, noise_draws=2)
    next(broken.model.parameters()).view(-1)[0] = torch.nan
    table = evaluate_cases(broken, [cases[-1]], tmp_path)
    assert table["message"].str.contains("NaN").all()


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
    bad_seed, original = case_seed(0, bad), Detector.reconstruct

    def fail_once(self: Detector, image: Any, seed: int = 0, *, draws: int = 1) -> torch.Tensor:
        if seed == bad_seed:
            raise error
        return original(self, image, seed, draws=draws)

    monkeypatch.setattr(Detector, "reconstruct", fail_once)
    table = evaluate_cases(detector, [bad, good], tmp_path).set_index("subject")
    assert table.loc[good.subject, "status"] == "ok"
    assert table.loc[bad.subject, "status"] == "failed"
    message = table.loc[bad.subject, "message"]
    assert message.startswith(f"{bad.image}: {type(error).__name__}: ")
    assert "\n" not in message


def test_a_bug_is_no_failed_case(
    detector: Detector, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise TypeError("a bug")

    monkeypatch.setattr(Detector, "reconstruct", fail)
    with pytest.raises(TypeError, match="a bug"):
        evaluate_cases(detector, cases, tmp_path)


def count_reconstructions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    original = Detector.reconstruct

    def counted(self: Detector, image: Any, seed: int = 0, *, draws: int = 1) -> torch.Tensor:
        calls.append(seed)
        return original(self, image, seed, draws=draws)

    monkeypatch.setattr(Detector, "reconstruct", counted)
    return calls


def test_a_rerun_computes_nothing_and_gives_the_same(
    detector: Detector, cases: list[Case], results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("cases.csv", "summary.csv", "summary.json")
    before = {name: (results / name).read_bytes() for name in names}
    calls = count_reconstructions(monkeypatch)
    evaluate_cases(detector, cases, results, scores=SCORES)
    assert calls == []
    assert {name: (results / name).read_bytes() for name in names} == before


def test_a_broken_run_goes_on(
    detector: Detector, cases: list[Case], results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a kill in the middle of writing the last case's line."""
    text = (results / "progress.jsonl").read_text()
    (tmp_path / "progress.jsonl").write_text(text[: text.rindex('{"key"') + 40])
    calls = count_reconstructions(monkeypatch)
    evaluate_cases(detector, cases, tmp_path, scores=SCORES)
    assert len(calls) == 1
    assert (tmp_path / "cases.csv").read_bytes() == (results / "cases.csv").read_bytes()


def test_other_seed_is_other_work(
    detector: Detector, cases: list[Case], results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "progress.jsonl").write_text((results / "progress.jsonl").read_text())
    calls = count_reconstructions(monkeypatch)
    evaluate_cases(
        detector, [case for case in cases if case.split == "test"], tmp_path, scores=SCORES, seed=1
    )
    assert len(calls) == 3


def test_reference_protocol(
    detector: Detector, cases: list[Case], table: pd.DataFrame, tmp_path: Path
) -> None:
    reference = evaluate_cases(detector, cases, tmp_path, scores=SCORES, reference=True)
    assert set(reference["protocol"]) == {REFERENCE.name}
    test = reference[(reference["set"] == "MSLUB") & (reference["split"] == "test")]
    voxels = 20 * 24 * 15
    counts = test[["true_positives", "false_positives", "true_negatives", "false_negatives"]].sum(axis=1)
    assert (counts == voxels).all()
    np.testing.assert_array_equal(test["false_positive_rate"], test["false_discovery_rate"])
    ours = table[(table["set"] == "MSLUB") & (table["split"] == "test")]
    assert (test["chance"].to_numpy() < ours["chance"].to_numpy()).all()
    assert (test["auroc"].to_numpy() > ours["auroc"].to_numpy() - 0.2).all()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["model"]["settings"]["shared_noise"] is True
    assert summary["thresholds"][1]["kind"].startswith("greedy")


def test_without_post_processing(detector: Detector, cases: list[Case], tmp_path: Path) -> None:
    case = next(case for case in cases if case.subject == "patient19")
    row = evaluate_cases(detector, [case], tmp_path, postprocess=False).iloc[0]
    prepared = load_case(case, detector.data_config)
    anomaly = detector.score_maps(prepared.image, prepared.mask, seed=case_seed(0, case))["ssim_ensemble"]
    expected = average_precision(anomaly.numpy()[prepared.mask], prepared.lesion[prepared.mask])
    assert row["average_precision"] == pytest.approx(expected)


def test_missed_by_the_brain_mask_is_missed(detector: Detector, cases: list[Case], tmp_path: Path) -> None:
    """Lesion outside the brain mask counts against the method."""
    case = next(case for case in cases if case.subject == "patient19")
    mask, lesion = nib.load(case.mask), nib.load(case.lesion)
    cut = tmp_path / "mask.nii.gz"
    outside = (mask.get_fdata() > 0) & ~(lesion.get_fdata() > 0)
    nib.save(nib.Nifti1Image(outside.astype(np.uint8), mask.affine), cut)
    row = evaluate_cases(detector, [Case(**{**vars(case), "mask": cut})], tmp_path / "out").iloc[0]
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
            "subject": str(number),
            "split": split,
            "score": "l1",
            "status": status,
            "best_dice": dice,
        }
        for number, (split, status, dice) in enumerate(
            [("test", "ok", 0.2), ("test", "ok", 0.4), ("test", "failed", 0.9), ("val", "ok", 0.9)]
        )
    ]
    text = headline(to_table(rows))
    assert "0.3000" in text
    assert "0.9000" not in text
