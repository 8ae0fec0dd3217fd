import numpy as np
import pandas as pd
import pytest
from run_tables import CASES, rows, values, write_run
from scipy import stats

from brainuad.compare import compare_runs, read_runs
from brainuad.compare.differences import is_simulated
from brainuad.errors import InputError
from brainuad.evaluation import holm, paired_difference, paired_permutation_test


def by_set(comparisons):
    return {(row.set, row.contestant): row for row in comparisons.rows}


def test_differences_are_paired_by_case(folders):
    found = compare_runs(read_runs(folders[:2]))
    row = by_set(found)["MSLUB", "two"]
    ours, theirs = values(folders[1], "MSLUB"), values(folders[0], "MSLUB")
    expected = paired_difference(ours, theirs)
    assert row.subjects == 12
    assert row.baseline == "one"
    assert (row.mean, row.baseline_mean) == pytest.approx((ours.mean(), theirs.mean()))
    assert (row.difference, row.low, row.high) == pytest.approx((expected.mean, expected.low, expected.high))
    assert row.p == paired_permutation_test(ours, theirs)
    assert row.larger == (ours > theirs).sum()
    assert dict(row.differences) == pytest.approx((ours - theirs).to_dict())
    assert stats.ttest_rel(ours, theirs).pvalue < 0.05  # another test sees the gain too
    assert row.p < 0.05


def test_shuffled_rows_change_nothing(folders, tmp_path):
    table = pd.read_csv(folders[1] / "cases.csv").sample(frac=1, random_state=0)
    shuffled = write_run(tmp_path / "elsewhere" / "two", table)
    first, second = (by_set(compare_runs(read_runs([folders[0], folder]))) for folder in (folders[1], shuffled))
    assert {key: row.row() for key, row in second.items()} == {key: row.row() for key, row in first.items()}


@pytest.mark.parametrize(
    ("dataset", "simulated"),
    [("simulated ms", True), ("stroke (semi-synthetic)", True), ("MSLUB (real MS)", False), ("ATLAS_v2", False)],
)
def test_sets_say_whether_they_are_simulated(dataset, simulated):
    assert is_simulated(dataset) is simulated


def test_real_and_simulated_sets_are_never_pooled(folders):
    found = by_set(compare_runs(read_runs(folders[:2])))
    assert [name for name, _ in found] == [*CASES, "all real", "all simulated"]
    assert found["all real", "two"].subjects == 12 + 9
    real = [values(folder, "MSLUB").tolist() + values(folder, "Lesions").tolist() for folder in folders]
    assert found["all real", "two"].difference == pytest.approx(np.subtract(real[1], real[0]).mean())
    # The simulated sets share their subjects, of whom each counts once.
    assert found["all simulated", "two"].subjects == 10
    both = [(values(folder, "simulated stroke") + values(folder, "simulated ms")) / 2 for folder in folders[:2]]
    assert found["all simulated", "two"].difference == pytest.approx((both[1] - both[0]).mean())


def test_p_values_are_adjusted_for_all_that_is_shown(folders):
    found = compare_runs(read_runs(folders), metrics=["average_precision", "dice:validation"])
    assert len(found.rows) == 2 * 2 * 6
    assert [row.p_holm for row in found.rows] == holm([row.p for row in found.rows])
    assert {row.baseline for row in found.rows} == {"one"}


def test_scores_of_one_run(tmp_path):
    folder = write_run(tmp_path / "run", rows(scores=("ssim_ensemble", "l1", "random")))
    found = by_set(compare_runs(read_runs([folder])))
    assert {contestant for _, contestant in found} == {"l1", "random"}
    expected = values(folder, "Lesions", "l1") - values(folder, "Lesions")
    assert found["Lesions", "l1"].difference == pytest.approx(expected.mean())
    reverse = compare_runs(read_runs([folder]), scores=["l1", "ssim_ensemble"])
    assert {(row.baseline, row.contestant) for row in reverse.rows} == {("l1", "ssim_ensemble")}
    assert by_set(reverse)["Lesions", "ssim_ensemble"].difference == pytest.approx(-expected.mean())


def test_runs_are_compared_score_by_score(tmp_path):
    table = list(rows(seed=5, scores=("ssim_ensemble", "l1")))
    same = [{**row, "score": "random", "value": 0.1} for row in table if row["score"] == "l1"]
    better = [{**row, "value": row["value"] + 0.02} for row in table]
    folders = write_run(tmp_path / "a", table + same), write_run(tmp_path / "b", better + same)
    found = compare_runs(read_runs(folders))
    assert {(row.baseline, row.contestant) for row in found.rows} == {
        ("a · ssim_ensemble", "b · ssim_ensemble"),
        ("a · l1", "b · l1"),
    }
    assert all(row.difference == pytest.approx(0.02) for row in found.rows)
    assert found.warnings == ("left out, as they are the same in both runs: b · random",)
    chosen = compare_runs(read_runs(folders), scores=["l1", "random"])
    assert {(row.baseline, row.contestant) for row in chosen.rows} == {
        ("a · l1", "a · random"),
        ("a · l1", "b · l1"),
        ("a · l1", "b · random"),
    }


def test_different_cases_are_named_and_the_common_ones_compared(folders, tmp_path):
    table = pd.read_csv(folders[1] / "cases.csv")
    lost = (table["set"] == "MSLUB") & table["case"].isin(["M002", "M007"])
    lost |= (table["set"] == "simulated ms") & (table["case"] < "s007")
    some = write_run(tmp_path / "some", table[~lost & (table["set"] != "Lesions")])
    found = compare_runs(read_runs([folders[0], some]))
    row = by_set(found)["MSLUB", "some"]
    assert row.subjects == 10
    assert {case for case, _ in row.differences}.isdisjoint({"M002", "M007"})
    assert "some lacks 2 cases (M002, M007) of MSLUB; compared on the others" in found.warnings
    assert "some has no cases of Lesions, one has 9" in found.warnings
    named = "s000, s001, s002, s003, s004 and 2 more"
    assert f"some lacks 7 cases ({named}) of simulated ms; compared on the others" in found.warnings
    assert not any(name in ("Lesions", "all real") for name, _ in by_set(found))


def test_failed_and_undefined_cases_are_counted(folders, tmp_path):
    table = pd.read_csv(folders[1] / "cases.csv", keep_default_na=False)
    case = (table["set"] == "MSLUB") & (table["case"] == "M003")
    failed = {
        "set": "MSLUB", "case": "M003", "split": "test", "metric": "failed", "value": 1, "message": "no brain",
    }  # fmt: skip
    undefined = (table["set"] == "MSLUB") & (table["case"] == "M004") & (table["metric"] == "average_precision")
    kept = table[~case & ~undefined]
    folder = write_run(tmp_path / "failing", [*kept.to_dict("records"), failed])
    found = compare_runs(read_runs([folders[0], folder]))
    row = by_set(found)["MSLUB", "failing"]
    assert row.subjects == 10
    # One failed, which is said; the other was measured, and its average precision is undefined.
    assert row.undefined == 2
    assert found.warnings == ("failing failed on 1 case (M003) of MSLUB; compared on the others",)


def test_seeds_of_a_case_count_as_one_case(folders, tmp_path):
    tables = [list(rows(seed=seed)) for seed in (7, 8)]
    folder = write_run(tmp_path / "seeds", tables[0] + tables[1])
    row = by_set(compare_runs(read_runs([folders[0], folder])))["MSLUB", "seeds"]
    assert row.subjects == 12
    assert row.mean == pytest.approx(values(folder, "MSLUB").mean())


def test_several_scans_of_a_subject_count_as_one(folders, tmp_path):
    """Five visits of each that say the same are no more evidence than one."""
    visits = [
        write_run(
            tmp_path / f"visits {folder.name}",
            [
                {**row, "subject": row["case"], "case": f"{row['case']} visit{visit}.nii.gz"}
                for row in pd.read_csv(folder / "cases.csv", keep_default_na=False).to_dict("records")
                for visit in range(5)
            ],
        )
        for folder in folders[:2]
    ]
    once = by_set(compare_runs(read_runs(folders[:2])))["MSLUB", "two"]
    often = by_set(compare_runs(read_runs(visits)))["MSLUB", "visits two"]
    for name in ("subjects", "difference", "low", "high", "p"):
        assert getattr(often, name) == pytest.approx(getattr(once, name)), name
    assert dict(often.differences) == pytest.approx(dict(once.differences))


def test_split_and_space(folders, tmp_path):
    runs = read_runs(folders[:2])
    model, native = (by_set(compare_runs(runs, space=space))["MSLUB", "two"] for space in ("model", "native"))
    assert native.difference == pytest.approx(model.difference / 2)
    with pytest.raises(InputError, match="split 'val'"):
        compare_runs(runs, split="val")
    validated = [
        write_run(tmp_path / name / "v", [*rows(seed=seed), *rows(seed=seed, split="val", cases={"MSLUB": 3})])
        for name, seed in (("a", 0), ("b", 1))
    ]
    (row,) = compare_runs(read_runs(validated), split="val").rows
    assert (row.subjects, row.contestant) == (3, "b/v")


def test_one_threshold_needs_no_name(tmp_path):
    folders = [
        write_run(tmp_path / str(seed), [row for row in rows(seed=seed) if row.get("threshold") != "oracle"])
        for seed in (0, 1)
    ]
    with pytest.raises(InputError, match=r"Choose one of dice:healthy@0\.01, dice:validation"):
        compare_runs(read_runs(folders), metrics=["dice"])
    folders = [
        write_run(tmp_path / str(seed), [row for row in rows(seed=seed) if row.get("threshold") != "oracle"
                                         and row.get("threshold") != "validation"])
        for seed in (0, 1)
    ]  # fmt: skip
    found = compare_runs(read_runs(folders), metrics=["dice"])
    assert {row.metric for row in found.rows} == {"dice:healthy@0.01"}
