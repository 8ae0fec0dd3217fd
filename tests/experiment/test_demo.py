from collections import Counter
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib import image as mpl_image

from brainuad.data.cohort import manifest_cases
from brainuad.detector import load_model
from brainuad.errors import InputError
from brainuad.experiment.demo import MODEL, SCORES, healthy_threshold, score_cohort, summarise_groups

COHORT = manifest_cases(Path(str(files("brainuad.assets") / "demo" / "manifest.csv")))


def test_the_cohort_is_what_the_documentation_says():
    groups = Counter(case.dataset for case in COHORT)
    assert groups == {
        "BraTS 2021 (real tumour)": 2,
        "MSLUB (real MS)": 2,
        "IXI healthy": 6,
        "ds002748 healthy": 2,
        "stroke (semi-synthetic)": 2,
    }
    assert len({case.subject.removesuffix("_stroke") for case in COHORT}) == 14
    assert all((case.lesion is None) == (case.label == 0) for case in COHORT)
    assert all(case.split == "test" for case in COHORT)


def test_shipped_files_are_small():
    folder = Path(str(files("brainuad.assets")))
    assert sum(path.stat().st_size for path in (folder / "demo").iterdir()) < 8e6
    assert (folder / "models" / MODEL / "model.safetensors").stat().st_size < 10e6
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 25e6


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    chosen = [
        next(case for case in COHORT if case.dataset == name) for name in dict.fromkeys(c.dataset for c in COHORT)
    ]
    return score_cohort(load_model(MODEL, "cpu"), chosen, tmp_path_factory.mktemp("demo"))


@pytest.mark.slow
def test_the_table_has_every_score_and_group(demo):
    assert list(demo.table.index) == list(SCORES)
    assert list(demo.table) == [
        f"{group}: {measure}"
        for group in ("BraTS 2021 (real tumour)", "MSLUB (real MS)", "stroke (semi-synthetic)")
        for measure in ("average precision", "best dice")
    ]
    healthy = demo.groups.loc[["IXI healthy", "ds002748 healthy"], "ssim_ensemble marks"]
    assert ((healthy > 0) & (healthy < 0.2)).all()
    assert list(demo.groups.index) == list(dict.fromkeys(case.dataset for case in COHORT))
    assert demo.table.notna().all().all()
    assert ((demo.table >= 0) & (demo.table <= 1)).all().all()
    stored = pd.read_csv(demo.results)
    assert len(stored) == 3 * len(SCORES)
    for row in stored.itertuples():
        assert row.average_precision == demo.table.loc[row.score, f"{row.group}: average precision"]
        assert row.n == 1
        assert 0 < row.chance < 0.25


@pytest.mark.slow
def test_the_page_shows_the_scans_with_real_lesions(demo):
    scores = pd.read_csv(demo.page.parent / "scored" / "scores.csv")
    assert list(scores["name"]) == ["BraTS2021_01484_t1", "patient07_t1"]
    assert set(scores["status"]) == {"done"}
    assert scores["rare"][0] > 0
    page = demo.page.read_text()
    kept = {path.suffix for path in demo.page.parent.iterdir() if path.is_file()}
    assert kept == {".csv", ".html", ".png"}  # what is to be looked at; the rest is in folders
    assert "BraTS2021_01484_t1" in page
    assert "Research use only" in page


@pytest.mark.slow
def test_the_model_finds_a_real_tumour_far_above_chance(demo):
    tumour = demo.table["BraTS 2021 (real tumour): average precision"]
    assert tumour["ssim_ensemble"] > 2 * demo.groups.loc["BraTS 2021 (real tumour)", "chance"]


@pytest.mark.slow
def test_the_model_finds_strokes_far_above_chance(demo):
    stroke = demo.table["stroke (semi-synthetic): average precision"]
    assert stroke["l1"] > 5 * demo.groups.loc["stroke (semi-synthetic)", "chance"]


@pytest.mark.slow
def test_every_case_has_a_picture(demo):
    assert len(demo.pictures) == 5
    assert demo.pictures[0].name == "BraTS2021_01484.png"
    for path in demo.pictures:
        assert mpl_image.imread(path).std() > 0.05


def test_groups_average_over_scans():
    cases = pd.DataFrame(
        [
            ("B", "0", "l1", 0.2, 0.3, 0.01, 0.5),
            ("A", "1", "l1", 0.2, 0.3, 0.01, 0.5),
            ("A", "2", "l1", 0.4, 0.5, 0.03, 0.5),
            ("H", "3", "l1", None, None, None, 0.02),
            ("H", "4", "l1", None, None, None, 0.04),
        ],
        columns=[*("set", "case", "score", "average_precision", "best_dice", "chance", "above@healthy@0.01")],
    )
    table, groups = summarise_groups(cases)
    assert table.loc["l1", "A: average precision"] == pytest.approx(0.3)
    assert table.loc["l1", "A: best dice"] == pytest.approx(0.4)
    assert groups.loc["A", "chance"] == pytest.approx(0.02)
    assert list(table)[::2] == ["B: average precision", "A: average precision"]
    assert groups["n"].to_dict() == {"B": 1, "A": 2, "H": 2}
    assert groups.loc["H", "l1 marks"] == pytest.approx(0.03)
    assert np.isnan(groups.loc["A", "l1 marks"])


def test_a_model_without_calibration_says_so():
    detector = load_model(MODEL, "cpu")
    detector.calibration = None
    with pytest.raises(InputError, match="no calibration"):
        healthy_threshold(detector, "l1", 0.01)
