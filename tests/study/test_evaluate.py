"""What is measured: against direct computations, and by which thresholds."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from painted import SCORES, count_work, map_of
from scipy import ndimage
from typer.testing import CliRunner

from brainuad.cli import app
from brainuad.data.cohort import Case
from brainuad.data.loading import load_case
from brainuad.detector import Detector
from brainuad.errors import InputError
from brainuad.evaluation import average_precision, best_dice, dice, pooled_greedy_threshold
from brainuad.models.base import Inference
from brainuad.scoring import drop_small
from brainuad.study import REFERENCE, case_seed, evaluate_cases, read_cases_csv, wide
from brainuad.study.protocol import HEALTHY
from brainuad.study.tables import COLUMNS


def test_the_table_is_tidy(tidy: pd.DataFrame) -> None:
    assert tuple(tidy.columns) == COLUMNS
    assert not tidy.duplicated(["set", "case", "split", "score", "space", "threshold", "metric"]).any()
    assert tidy["value"].notna().all()
    assert set(tidy["space"]) == {"", "model", "native"}
    assert set(tidy["threshold"]) == {"", *HEALTHY, "validation", "oracle"}


def test_one_row_a_case_and_score(table: pd.DataFrame, cases: list[Case]) -> None:
    expected = {
        (case.dataset, case.subject, case.split, score) for case in cases if case.split != "train" for score in SCORES
    }
    rows = list(table[["set", "case", "split", "score"]].itertuples(index=False, name=None))
    assert len(rows) == len(expected)
    assert set(rows) == expected


def test_measures_are_those_of_the_map(table: pd.DataFrame, detector: Detector, cases: list[Case]) -> None:
    """Against a direct computation, with the threshold of the two validation cases."""
    validation, test = (
        [case for case in cases if case.dataset == "MSLUB" and case.split == split] for split in ("val", "test")
    )
    fitted = [map_of(detector, case, "l1") for case in validation]
    _, threshold = best_dice(
        np.concatenate([anomaly.numpy()[prepared.mask] for anomaly, prepared in fitted]),
        np.concatenate([prepared.lesion[prepared.mask] for _, prepared in fitted]),
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


def test_native_space_is_the_grid_of_the_files(tidy: pd.DataFrame, detector: Detector, cases: list[Case]) -> None:
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


def test_reference_protocol(
    detector: Detector, cases: list[Case], table: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = wide(evaluate_cases(detector, cases, tmp_path, scores=SCORES, baselines=False, protocol=REFERENCE))
    test = reference[(reference["set"] == "MSLUB") & (reference["split"] == "test")]
    voxels = 20 * 24 * 15
    names = ("true_positives", "false_positives", "true_negatives", "false_negatives")
    counts = test[[f"{name}@validation" for name in names]].sum(axis=1)
    assert (counts == voxels).all()
    np.testing.assert_array_equal(test["false_positive_rate@validation"], test["false_discovery_rate@validation"])
    ours = table[(table["set"] == "MSLUB") & (table["split"] == "test")]
    assert (test["chance"].to_numpy() < ours["chance"].to_numpy()).all()
    assert (test["auroc"].to_numpy() > ours["auroc"].to_numpy() - 0.2).all()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["model"]["settings"]["shared_noise"] is True
    greedy = summary["thresholds"][1]
    assert greedy["kind"].startswith("greedy")
    shared = detector.with_settings(shared_noise=True)
    validation = [case for case in cases if case.dataset == "MSLUB" and case.split == "val"]
    for name in SCORES:
        maps, lesions = [], []
        for case in validation:
            anomaly, prepared = map_of(shared, case, name)
            maps.append(anomaly)
            lesions.append(prepared.lesion)
        expected = pooled_greedy_threshold(maps, lesions)
        assert greedy["thresholds"][name]["validation"] == pytest.approx(expected, rel=1e-6)
    calls = count_work(monkeypatch)
    evaluate_cases(detector, cases, tmp_path, scores=SCORES, baselines=False, protocol=REFERENCE)
    assert calls == [], "also the search is not done again"


def test_without_post_processing(detector: Detector, cases: list[Case], tmp_path: Path) -> None:
    case = next(case for case in cases if case.subject == "patient19")
    row = wide(evaluate_cases(detector, [case], tmp_path, baselines=False, postprocess=False)).iloc[0]
    prepared = load_case(case, detector.data_config)
    stack = detector.reconstruct(prepared.image, case_seed(0, case)).half().float()
    anomaly = detector.compare(prepared.image, Inference(stack, None), prepared.mask)["ssim_ensemble"]
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


def test_the_command_counts_the_voxels_it_is_told_to(detector: Detector, cases: list[Case], tmp_path: Path) -> None:
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
