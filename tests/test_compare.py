import csv
import io
import json
import math
import re
import time
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from typer.testing import CliRunner

from brainuad.cli import app
from brainuad.compare import compare_runs, read_runs, write_comparisons
from brainuad.compare.differences import is_simulated
from brainuad.compare.runs import COLUMNS
from brainuad.errors import InputError
from brainuad.evaluation import holm, paired_difference, paired_permutation_test

CASES = {"MSLUB": 12, "Lesions": 9, "simulated stroke": 10, "simulated ms": 10}
THRESHOLDS = ("healthy@0.01", "validation", "oracle")


def rows(seed=0, gain=0.0, scores=("ssim_ensemble",), cases=CASES, split="test"):
    """Yield rows as `brainuad evaluate` writes them; the second score is better by 0.1."""
    for dataset, count in cases.items():
        for case in range(count):
            rng = np.random.default_rng([seed, case, len(dataset)])
            for rank, score in enumerate(scores):
                label = {"set": dataset, "case": f"{dataset[:1]}{case:03}", "split": split, "score": score}
                ap = 0.3 + 0.02 * case + gain + 0.1 * rank + rng.normal(0, 0.03)
                for space in ("model", "native"):
                    value = ap if space == "model" else ap / 2
                    yield {**label, "space": space, "metric": "average_precision", "value": value}
                for at in THRESHOLDS:
                    yield {**label, "space": "model", "threshold": at, "metric": "dice", "value": ap / 3}


def write_run(folder, table):
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(table, columns=list(COLUMNS)).to_csv(folder / "cases.csv", index=False)
    return folder


def values(folder, dataset, score="ssim_ensemble", metric="average_precision", space="model"):
    table = pd.read_csv(folder / "cases.csv")
    chosen = (table["set"] == dataset) & (table["score"] == score) & (table["space"] == space)
    return table[chosen & (table["metric"] == metric)].groupby("case")["value"].mean()


def run_command(*arguments):
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


@pytest.fixture
def folders(tmp_path):
    return [
        write_run(tmp_path / "one", rows(seed=0)),
        write_run(tmp_path / "two", rows(seed=1, gain=0.05)),
        write_run(tmp_path / "three", rows(seed=2, gain=-0.02)),
    ]


def by_set(comparisons):
    return {(row.set, row.contestant): row for row in comparisons.rows}


def test_differences_are_paired_by_case(folders):
    found = compare_runs(read_runs(folders[:2]))
    row = by_set(found)["MSLUB", "two"]
    ours, theirs = values(folders[1], "MSLUB"), values(folders[0], "MSLUB")
    expected = paired_difference(ours, theirs)
    assert row.cases == 12
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
    first, second = (
        by_set(compare_runs(read_runs([folders[0], folder]))) for folder in (folders[1], shuffled)
    )
    assert {key: row.row() for key, row in second.items()} == {key: row.row() for key, row in first.items()}


@pytest.mark.parametrize(
    ("dataset", "simulated"),
    [
        ("simulated ms", True),
        ("stroke (semi-synthetic)", True),
        ("MSLUB (real MS)", False),
        ("ATLAS_v2", False),
    ],
)
def test_sets_say_whether_they_are_simulated(dataset, simulated):
    assert is_simulated(dataset) is simulated


def test_real_and_simulated_sets_are_never_pooled(folders):
    found = by_set(compare_runs(read_runs(folders[:2])))
    assert [name for name, _ in found] == [*CASES, "all real", "all simulated"]
    assert found["all real", "two"].cases == 12 + 9
    real = [values(folder, "MSLUB").tolist() + values(folder, "Lesions").tolist() for folder in folders]
    assert found["all real", "two"].difference == pytest.approx(np.subtract(real[1], real[0]).mean())
    # The simulated sets share their subjects, of whom each counts once.
    assert found["all simulated", "two"].cases == 10
    both = [
        (values(folder, "simulated stroke") + values(folder, "simulated ms")) / 2 for folder in folders[:2]
    ]
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
    assert row.cases == 10
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
    undefined = (
        (table["set"] == "MSLUB") & (table["case"] == "M004") & (table["metric"] == "average_precision")
    )
    kept = table[~case & ~undefined]
    folder = write_run(tmp_path / "failing", [*kept.to_dict("records"), failed])
    found = compare_runs(read_runs([folders[0], folder]))
    row = by_set(found)["MSLUB", "failing"]
    assert row.cases == 10
    # One failed, which is said; the other was measured, and its average precision is undefined.
    assert row.undefined == 2
    assert found.warnings == ("failing failed on 1 case (M003) of MSLUB; compared on the others",)


def test_seeds_of_a_case_count_as_one_case(folders, tmp_path):
    tables = [list(rows(seed=seed)) for seed in (7, 8)]
    folder = write_run(tmp_path / "seeds", tables[0] + tables[1])
    row = by_set(compare_runs(read_runs([folders[0], folder])))["MSLUB", "seeds"]
    assert row.cases == 12
    assert row.mean == pytest.approx(values(folder, "MSLUB").mean())


def test_split_and_space(folders, tmp_path):
    runs = read_runs(folders[:2])
    model, native = (by_set(compare_runs(runs, space=space))["MSLUB", "two"] for space in ("model", "native"))
    assert native.difference == pytest.approx(model.difference / 2)
    with pytest.raises(InputError, match="split 'val'"):
        compare_runs(runs, split="val")
    validated = [
        write_run(
            tmp_path / name / "v", [*rows(seed=seed), *rows(seed=seed, split="val", cases={"MSLUB": 3})]
        )
        for name, seed in (("a", 0), ("b", 1))
    ]
    (row,) = compare_runs(read_runs(validated), split="val").rows
    assert (row.cases, row.contestant) == (3, "b/v")


def test_single_case_has_no_interval(tmp_path):
    folders = [write_run(tmp_path / str(seed), rows(seed=seed, cases={"MSLUB": 1})) for seed in (0, 1)]
    (row,) = compare_runs(read_runs(folders)).rows
    assert math.isnan(row.low)
    assert row.p == 1
    result = run_command(*folders, "-o", tmp_path / "out", "--json")
    assert json.loads(result.stdout)["comparisons"][0]["low"] is None
    assert "NaN" not in (tmp_path / "out" / "compare.html").read_text(encoding="utf-8")


class Page(HTMLParser):
    """Collects tags, attributes and text of a page; complains about tags that nobody closes."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.open = [], [], "", []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_command_writes_table_text_and_page(folders, tmp_path):
    out = tmp_path / "out"
    result = run_command(*folders, "-o", out, "--metric", "average_precision,dice:healthy@0.01")
    assert result.exit_code == 0, result.output
    assert "two" in result.stdout
    assert {path.name for path in out.iterdir()} == {"compare.csv", "compare.md", "compare.html"}
    with (out / "compare.csv").open(encoding="utf-8") as handle:
        table = list(csv.DictReader(handle))
    expected = compare_runs(read_runs(folders), metrics=["average_precision", "dice:healthy@0.01"])
    assert len(table) == len(expected.rows) == 24
    for row, known in zip(table, expected.rows, strict=True):
        assert (row["set"], row["contestant"], row["metric"]) == (known.set, known.contestant, known.metric)
        assert float(row["p_holm"]) == pytest.approx(known.p_holm)
        assert float(row["low"]) == pytest.approx(known.low)

    text = (out / "compare.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 24
    assert "24 comparisons" in text

    page = Page((out / "compare.html").read_text(encoding="utf-8"))
    assert page.tags.count("svg") == 2
    dots = sum(row.cases for row in expected.rows)
    assert page.tags.count("circle") == dots + len(expected.rows)
    assert "script" not in page.tags
    # Nothing is fetched, and everything drawn lies within the drawing.
    assert not [value for name, value in page.attributes if name in ("src", "href")]
    width = max(float(value.split()[2]) for name, value in page.attributes if name == "viewbox")
    assert all(
        0 <= float(value) <= width for name, value in page.attributes if name in ("cx", "x1", "x2", "x")
    )


def test_same_bytes_again(folders, tmp_path):
    for name in ("a", "b"):
        run_command(*folders[:2], "-o", tmp_path / name)
        time.sleep(0.01)
    for name in ("compare.csv", "compare.md", "compare.html"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_json_is_all_there_is_on_stdout(folders, tmp_path):
    result = run_command(*folders[:2], "-o", tmp_path / "out", "--json")
    about = json.loads(result.stdout)
    assert [run["name"] for run in about["runs"]] == ["one", "two"]
    assert len(about["comparisons"]) == 6
    assert about["comparisons"][0]["difference"] == compare_runs(read_runs(folders[:2])).rows[0].difference


def test_names_from_files_are_text_and_nothing_else(tmp_path):
    evil = '<script>alert(1)</script>|"x'
    table = [{**row, "set": evil, "case": evil + row["case"]} for row in rows(cases={"MSLUB": 3})]
    more = [{**row, "value": row["value"] + 0.1} for row in table]
    folders = write_run(tmp_path / "a", table), write_run(tmp_path / "<b>", more)
    assert run_command(*folders, "-o", tmp_path / "out").exit_code == 0
    page = Page((tmp_path / "out" / "compare.html").read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert "b" not in [tag for tag in page.tags if tag == "b"][2:]  # a name each, in bold
    assert evil in page.text
    markdown = (tmp_path / "out" / "compare.md").read_text(encoding="utf-8")
    cells = [len(re.findall(r"(?<!\\)\|", line)) for line in markdown.splitlines() if line.startswith("|")]
    assert len(set(cells)) == 1


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--metric", "dice"], 1, "several thresholds"),
        (["--metric", "dise"], 2, "Did you mean 'dice'?"),
        (["--metric", "dice:validatoin"], 2, "dice:validation"),
        (["--score", "l3"], 2, "'l3' is unknown"),
        (["--split", "train"], 2, "is none of test, val"),
        (["--split", "val"], 1, "was not measured"),
    ],
)
def test_wrong_usage(folders, tmp_path, options, code, message):
    result = run_command(*folders[:2], "-o", tmp_path / "out", *options)
    assert result.exit_code == code
    assert message in re.sub(r"[\s│]+", " ", result.stderr)
    assert not (tmp_path / "out").exists()


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


def test_runs_that_cannot_be_compared(folders, tmp_path):
    other = write_run(tmp_path / "other", rows(cases={"BraTS": 4}))
    with pytest.raises(InputError, match="other has no cases of MSLUB") as error:
        compare_runs(read_runs([folders[0], other]))
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="has a single score"):
        compare_runs(read_runs([folders[0]]))
    with pytest.raises(InputError, match="is given twice"):
        read_runs([folders[0], folders[0] / "."])
    mixed = write_run(tmp_path / "mixed", rows(scores=("l1", "l2")))
    with pytest.raises(InputError, match="shares no score"):
        compare_runs(read_runs([folders[0], mixed]))
    single = write_run(tmp_path / "single", rows(scores=("l1",)))
    labels = {row.contestant for row in compare_runs(read_runs([folders[0], single])).rows}
    assert labels == {"single · l1"}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (None, "cannot be read"),
        ("", "is no table"),
        ("a,b\n1,2\n", "lacks the columns set, case"),
        (",".join(COLUMNS) + "\nMSLUB,1,test,l1,model,,dice,much,\n", "holds 'much' as a value in line 2"),
        (",".join(COLUMNS) + "\nMSLUB,1,test,l1,model,,dice,inf,\n", "holds 'inf'"),
        (b"\xff\xfe\x00", "is no table"),
    ],
)
def test_damaged_runs(tmp_path, folders, text, fault):
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    if text is not None:
        data = text if isinstance(text, bytes) else text.encode()
        (damaged / "cases.csv").write_bytes(data)
    result = run_command(folders[0], damaged, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert fault in result.stderr
    assert "damaged/cases.csv" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_cases_keep_their_names(tmp_path):
    table = [{**row, "case": name} for row in rows(cases={"MSLUB": 1}) for name in ("007", "NA", "1e3")]
    folders = write_run(tmp_path / "a", table), write_run(tmp_path / "b", table)
    (row,) = compare_runs(read_runs(folders)).rows
    assert [case for case, _ in row.differences] == ["007", "1e3", "NA"]
    assert (row.difference, row.p) == (0, 1)


def test_writing_needs_no_folder(folders, tmp_path):
    runs = read_runs(folders[:2])
    page = write_comparisons(tmp_path / "x" / "y", runs, compare_runs(runs), split="test", space="model")
    assert page.is_file()
    assert pd.read_csv(io.StringIO((page.parent / "compare.csv").read_text()))["cases"].tolist()[0] == 12
