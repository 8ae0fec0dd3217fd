import base64
import io
import json
import re
from html.parser import HTMLParser
from importlib.resources import files
from xml.etree import ElementTree

import pytest
from matplotlib import image as mpl_image
from scored_folder import EVIL, RARE, SCALE, SCRIPT, patient, write_run, write_scan
from typer.testing import CliRunner

from brainuad.cli import app
from brainuad.errors import InputError
from brainuad.record import FEW_HEALTHY, Scale
from brainuad.report.histogram import histogram
from brainuad.report.page import CSP, build_report
from brainuad.report.words import scale_words

VOID = {"meta", "link", "img", "input", "br", "hr"}
LOADING = {"src", "href", "xlink:href", "srcset", "poster", "action", "formaction", "data", "background"}


class Page(HTMLParser):
    """Elements, attributes that load or link, text by element; complains about tags that do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.links: list[tuple[str, str]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.links += [(name, value) for name, value in attrs if name in LOADING]
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = attributes, text + data
        elif self.open and self.open[-1] != "style":
            self.text += data

    def handle_entityref(self, name):
        raise AssertionError(name)


def read(path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def payload(page: Page, number: int = 0) -> dict:
    (text,) = [text for attributes, text in page.scripts if attributes.get("id") == f"scan-{number}-data"]
    return json.loads(text)


@pytest.fixture(scope="module")
def cohort_page(cohort) -> Page:
    return read(build_report(cohort))


def test_the_page_loads_nothing_from_anywhere(cohort_page):
    (policy,) = [a["content"] for _, a in cohort_page.elements if "http-equiv" in a]
    assert policy == CSP
    assert "default-src 'none'" in policy
    assert "connect-src 'none'" in policy
    assert cohort_page.links
    for _, value in cohort_page.links:
        assert value.startswith(("#", "data:image/png;base64,"))


@pytest.mark.parametrize("name", ["viewer.js", "page.js", "style.css"])
def test_our_code_asks_for_nothing_and_writes_no_markup(name):
    code = (files("brainuad.report") / "templates" / name).read_text()
    for word in (
        "http",
        "fetch(",
        "XMLHttpRequest",
        "@import",
        "import(",
        "eval(",
        "innerHTML",
        "document.write",
        "url(",
    ):
        assert word not in code


def test_the_policy_comes_before_anything_that_could_load(cohort_page):
    tags = [tag for tag, _ in cohort_page.elements]
    policy = next(place for place, (_, attributes) in enumerate(cohort_page.elements) if "http-equiv" in attributes)
    assert tags[:4] == ["html", "head", "meta", "meta"]
    assert policy == 3


def test_names_and_messages_are_never_markup(cohort_page):
    assert EVIL in cohort_page.text
    assert SCRIPT in cohort_page.text
    assert all("onerror" not in attributes for _, attributes in cohort_page.elements)
    assert payload(cohort_page, 1)["name"] == EVIL
    kinds = [attributes.get("type") for attributes, _ in cohort_page.scripts]
    assert kinds == ["application/json"] * 3 + [None] * 3
    assert not any("owned" in text for attributes, text in cohort_page.scripts if not attributes.get("type"))


def test_the_page_says_what_it_must(cohort_page):
    text = " ".join(cohort_page.text.split())
    assert text.count("Research use only; not for diagnosis.") >= 2
    assert "1 % of a healthy brain's voxels are at or above 0.400" in text
    assert "The model has not been calibrated" in text
    assert "brain volume out of range" in text
    assert "3 done" in text
    assert "1 failed" in text
    about = "score ssim_ensemble · model lite-t1 · scored 2026-11-24 · brainuad"
    assert about in text
    images = [attributes for tag, attributes in cohort_page.elements if tag == "img"]
    assert len([image for image in images if "through its findings" not in image["alt"]]) == 3
    assert all("patient19" in image["alt"] or "Axial slices of" in image["alt"] for image in images)


def test_numbers_in_the_table_are_those_of_the_sidecar(scored):
    page = read(build_report(scored))
    entry = json.loads((scored / "patient19_t1.json").read_text())
    rows = [attributes for tag, attributes in page.elements if tag == "tr" and "data-centre" in attributes]
    assert [row["data-label"] for row in rows] == [str(finding["label"]) for finding in entry["findings"]]
    assert [[float(value) for value in row["data-centre"].split()] for row in rows] == [
        finding["centre_mm"] for finding in entry["findings"]
    ]
    for finding in entry["findings"]:
        assert f"{finding['peak']:.3f}" in page.text
        assert f"{finding['healthy_alike']} of 15" in page.text
    assert "<b>left</b> thalamus" in page.text


def test_findings_are_headed_by_what_healthy_scans_have(scored):
    page = read(build_report(scored))
    entry = json.loads((scored / "patient19_t1.json").read_text())
    text = " ".join(page.text.split())
    count = len(entry["findings"])
    assert f"{RARE} of {count} findings are rarer than in 1 of 20 healthy scans" in text
    assert "Of 15 healthy scans, half have 6 findings or more (2 to 11), 8.2 mL in all or more (1.5 to 19.0)." in text
    assert f"{count - RARE} findings that are common in healthy scans" in text
    assert payload(page)["rare"] == RARE


def test_a_list_of_unknown_rarity_is_not_folded(scored):
    path = scored / "patient19_t1.json"
    entry = json.loads(path.read_text())
    del entry["calibration"]["healthy_findings"]
    for finding in entry["findings"]:
        for name in ("region", "healthy_alike", "rare"):
            del finding[name]
    path.write_text(json.dumps(entry))
    page = read(build_report(scored))
    assert f"{len(entry['findings'])} findings" in page.text
    assert "largest first." in page.text
    assert "are common in healthy scans" not in page.text
    assert payload(page)["rare"] is None


def test_colours_are_on_the_scale_of_the_calibration_unless_a_finding_is_beyond(cohort_page):
    scales = [payload(cohort_page, number)["scale"] for number in range(3)]
    for scale in scales[:2]:
        assert (scale["first"], scale["threshold"]) == (0.33, 0.4)
        assert 0.55 <= scale["full"] < 1
    assert max(scale["full"] for scale in scales[:2]) > 0.55
    assert scales[2] == {"first": 0.2, "full": 1.0, "threshold": None}
    values = [value for value, _ in payload(cohort_page)["steps"]]
    assert values == [0.55, 0.4, 0.33, 0.0]


def test_words_name_the_fraction_chosen():
    changed = {"fraction": 0.001, "threshold": 0.55, "interval": None, "healthy_findings": None}
    scale = Scale(**({name: SCALE.get(name) for name in Scale.__annotations__} | changed))
    assert scale_words(scale).startswith("0.1 % of a healthy brain's voxels are at or above 0.550 (findings);")


def test_a_damaged_scan_keeps_its_place_and_its_numbers(cohort, tmp_path):
    out = tmp_path / "out"
    sidecar = write_scan(out, "a", *patient())
    write_scan(out, "b", *patient())
    (out / "a_anomaly.nii.gz").write_bytes(b"")
    page = read(build_report(out))
    assert "a_anomaly.nii.gz: is damaged" in page.text
    assert f"{sidecar['findings'][0]['peak']:.3f}" in page.text
    text = " ".join(page.text.split())
    assert "1 damaged" in text
    assert "1 done" in text
    assert payload(page, 1)["name"] == "b"


def test_a_large_cohort_gets_a_page_a_scan(tmp_path):
    out = tmp_path / "out"
    anat = out / "sub-01" / "anat"
    for name, folder in (("a#1 %41", out), ("report", out), ("sub-01_T1w", anat)):
        write_scan(folder, name, *patient())
    report = build_report(out, embedded_bytes=10_000)
    assert report.stat().st_size < 60_000
    page = read(report)
    links = [value for name, value in page.links if name == "href" and value.startswith("./")]
    assert links == ["./a%231%20%2541.html", "./report_scan.html", "./sub-01/anat/sub-01_T1w.html"]
    own = read(anat / "sub-01_T1w.html")
    assert ("href", "../../report.html") in own.links
    assert payload(own, 2)["name"] == "sub-01_T1w"
    assert (out / "a#1 %41.html").exists()
    assert payload(read(out / "report_scan.html"), 1)["name"] == "report"


def test_what_is_said_of_all_scans_is_said_once(tmp_path):
    out = tmp_path / "out"
    volumes, affine = patient()
    for name in "abc":
        warnings = ["few healthy scans", "odd brain volume"] if name == "b" else ["few healthy scans"]
        write_scan(out, name, volumes, affine, warnings=warnings)
    table = read(build_report(out, embedded_bytes=10_000)).text
    assert table.count("few healthy scans") == 1
    assert "All scans: few healthy scans" in table
    assert table.count("odd brain volume") == 1
    assert "few healthy scans" in read(out / "a.html").text


def test_what_is_of_the_model_is_a_footnote(tmp_path):
    volumes, affine = patient()
    few = f"{FEW_HEALTHY} 15 healthy scans; 20 or more are better"
    sidecar = write_scan(tmp_path / "out", "a", volumes, affine, warnings=[few, "brain volume out of range"])
    write_run(tmp_path / "out", [sidecar])
    text = build_report(tmp_path / "out").read_text(encoding="utf-8")
    assert "<b>Warning:</b> brain volume out of range" in text
    assert f"<b>Warning:</b> {few}" not in text
    assert f"Note: {few}." in text


def test_the_montage_is_the_one_that_was_written_or_else_drawn(scored):
    written, path = scored / "patient19_t1.png", scored / "report.html"
    build_report(scored)
    assert base64.b64encode(written.read_bytes()).decode() in path.read_text()
    for damaged in (b"no picture", None):
        written.write_bytes(damaged) if damaged else written.unlink()
        build_report(scored)
        picture = re.search(r"data:image/png;base64,([^\"]+)", path.read_text())[1]
        height, width, _ = mpl_image.imread(io.BytesIO(base64.b64decode(picture))).shape
        assert min(height, width) > 500


def test_the_same_files_give_the_same_page(scored):
    first = build_report(scored).read_bytes()
    assert build_report(scored).read_bytes() == first


def test_the_histogram_counts_every_scan():
    drawn = histogram([("a", 0.2), ("<b>", 0.4)], [0.1, 0.11, 0.12, 0.3])
    titles = [element.text for element in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}title")]
    assert sum(int(text.split()[0]) for text in titles if "healthy scans" in text) == 4
    assert sum(int(text.split()[0]) for text in titles if re.match(r"\d+ scans", text)) == 2
    assert titles[-2:] == ["a: 0.2000", "<b>: 0.4000"]
    assert 'aria-label="Scores of 2 scans, 0.200 to 0.400, beside 4 healthy scans, 0.100 to 0.300."' in drawn
    assert "<style" not in drawn
    assert histogram([], [0.1]) == ""
    assert "healthy" not in histogram([("a", 0.2)], [])


def test_the_command_prints_the_page(scored):
    result = CliRunner().invoke(app, ["report", str(scored)])
    assert result.exit_code == 0
    assert result.stdout.strip() == str(scored / "report.html")
    assert (scored / "report.html").stat().st_size > 2_000_000


def test_the_command_fails_clearly_where_nothing_was_scored(tmp_path):
    result = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert result.exit_code == 1
    assert "holds no scored scan" in result.stderr
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "report.html").mkdir()
    write_scan(tmp_path, "a", *patient())
    with pytest.raises(InputError, match="cannot be written"):
        build_report(tmp_path)
