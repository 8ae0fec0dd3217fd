import csv
import io
import json
import math
import re
import time
from html.parser import HTMLParser

import pandas as pd
import pytest
from run_tables import rows, run_command, write_run

from brainuad.compare import compare_runs, read_runs, write_comparisons


def test_single_case_has_no_interval(tmp_path):
    folders = [write_run(tmp_path / str(seed), rows(seed=seed, cases={"MSLUB": 1})) for seed in (0, 1)]
    (row,) = compare_runs(read_runs(folders)).rows
    assert math.isnan(row.low)
    assert row.p == 1
    result = run_command(*folders, "-o", tmp_path / "out", "--json")
    assert json.loads(result.stdout)["comparisons"][0]["low"] is None
    assert "NaN" not in (tmp_path / "out" / "compare.html").read_text(encoding="utf-8")


def test_runs_that_agree_are_said_to(tmp_path):
    folders = [write_run(tmp_path / name, rows(seed=0)) for name in ("a", "b")]
    result = run_command(*folders, "-o", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.stderr
    for row in json.loads(result.stdout)["comparisons"]:
        assert (row["difference"], row["larger"], row["smaller"], row["p"]) == (0, 0, 0, 1)
    assert (tmp_path / "out" / "compare.html").is_file()


def test_without_lesions_the_usual_metric_is_missed_in_words(tmp_path):
    table = [{**row, "metric": "scan_score"} for row in rows(seed=0) if row["metric"] == "average_precision"]
    folders = [write_run(tmp_path / name, table) for name in ("a", "b")]
    result = run_command(*folders, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "average_precision: was not measured in split 'test', model space. There are: scan_score" in result.stderr


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
    differences = [difference for row in expected.rows for difference in row.differences]
    assert page.tags.count("title") == 1 + len(differences) + len(expected.rows)  # of the page, the dots and the means
    for subject, value in differences:
        assert f"{subject}: {value:+.4g}" in page.text
    assert "script" not in page.tags
    names = [value for name, value in page.attributes if name == "id" and value.startswith(("average", "dice"))]
    assert len(names) == len(set(names)) == len(differences) + len(expected.rows)
    # Nothing is fetched, and everything drawn lies within the drawing.
    assert not [value for name, value in page.attributes if name in ("src", "href")]
    assert all(value.startswith("#") for name, value in page.attributes if name == "xlink:href")
    width = max(float(value.split()[2]) for name, value in page.attributes if name == "viewbox")
    assert all(0 <= float(value) <= width for name, value in page.attributes if name == "x")


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


def test_writing_needs_no_folder(folders, tmp_path):
    runs = read_runs(folders[:2])
    page = write_comparisons(tmp_path / "x" / "y", runs, compare_runs(runs), split="test", space="model")
    assert page.is_file()
    assert pd.read_csv(io.StringIO((page.parent / "compare.csv").read_text()))["subjects"].tolist()[0] == 12
