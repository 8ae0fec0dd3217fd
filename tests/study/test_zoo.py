"""The page of the zoo, from made-up tables, and its picture."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib import image as mpl_image

from brainuad.compare import compare_runs
from brainuad.compare.runs import Run
from brainuad.evaluation import summarise
from brainuad.report.montage import Overlay, method_panels
from brainuad.study.tables import COLUMNS
from brainuad.study.zoo_page import Entry, page, telling_subject

HEADINGS = {"MSLUB": "Real lesions: MSLUB", "simulated ms": "Simulated lesions: simulated ms"}
COSTS = {"parameters": 1200, "steps": 10, "training_seconds": 60.4, "scan_seconds": 0.25}


def made_up(scores: tuple[str, ...], seed: int, gain: float, subjects: int = 8) -> pd.DataFrame:
    """A table as of an evaluation: two sets with lesions, one healthy; several scans of the first subject."""
    rows = []
    for dataset in ("MSLUB", "simulated ms", "IXI"):
        for number in range(subjects):
            place = {"set": dataset, "case": f"c{number}", "subject": f"s{max(number, 1)}", "split": "test"}
            rows.append({**place, "metric": "lesion_ml", "value": float(number)})
            for rank, score in enumerate(scores):
                rng = np.random.default_rng([seed, number, rank, len(dataset)])
                value = 0.3 + 0.02 * number + gain + 0.1 * rank + rng.normal(0, 0.03)
                of_score = {**place, "score": score, "space": "model"}
                if dataset == "IXI":
                    rows.append({**of_score, "threshold": "healthy@0.01", "metric": "above", "value": value / 10})
                    continue
                for metric, measured in (("average_precision", value), ("best_dice", value / 2), ("chance", 0.01)):
                    rows.append({**of_score, "metric": metric, "value": measured})
    return pd.DataFrame(rows, columns=list(COLUMNS)).fillna({name: "" for name in COLUMNS if name != "value"})


@pytest.fixture(scope="module")
def entries() -> list[Entry]:
    two = ("l1", "ssim_ensemble")
    tables = {
        ("ddpm", 1): made_up(("random", *two), 1, 0.0),
        ("ddpm", 2): made_up(two, 2, 0.0),
        ("atlas", 1): made_up(("model",), 3, 0.2),
        ("atlas", 2): made_up(("model",), 3, 0.2),
    }
    return [
        Entry(model, seed, ("model",) if model == "atlas" else two, table, COSTS)
        for (model, seed), table in tables.items()
    ]


def cells(text: str, heading: str, method: str) -> list[str]:
    """The row of a method below a heading."""
    section = text.split(f"## {heading}")[1].split("## ")[0]
    (line,) = [line for line in section.splitlines() if line.startswith(f"| {method} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_seed_is_no_subject(entries: list[Entry]) -> None:
    text = page(entries, HEADINGS, budget="30 minutes", failed=[])
    both = pd.concat([entries[0].table, entries[1].table])
    rows = both[(both["set"] == "MSLUB") & (both["score"] == "l1") & (both["metric"] == "average_precision")]
    values = summarise(rows.groupby("subject", sort=False)["value"].mean())
    assert values.n == 7
    expected = f"{values.mean:.3f} ({values.low:.3f} to {values.high:.3f})"
    assert cells(text, "Real lesions: MSLUB", "ddpm, l1")[1:3] == ["7", expected]
    assert "Trainings of each model: 2" in text


def test_differences_are_those_of_compare(entries: list[Entry]) -> None:
    text = page([entries[0], entries[2]], HEADINGS, budget="30 minutes", failed=[])
    first = Run("ddpm", Path(), entries[0].table[entries[0].table["score"].isin(("ssim_ensemble", ""))])
    second = Run("atlas", Path(), entries[2].table)
    renamed = Run("atlas", Path(), second.table.replace({"score": {"model": "ssim_ensemble"}}))
    (found,) = [row for row in compare_runs([first, renamed]).rows if row.set == "simulated ms"]
    assert found.subjects == 7
    shown = cells(text, "Simulated lesions: simulated ms", "atlas")
    assert shown[4] == "-", "nothing is compared with itself"
    assert shown[5].startswith(f"{found.difference:+.3f} ({found.low:+.3f} to {found.high:+.3f}), p ")
    opposite = cells(text, "Simulated lesions: simulated ms", "ddpm, ssim_ensemble")
    assert opposite[4].startswith(f"{-found.difference:+.3f} (")
    assert float(shown[5].split("p ")[1]) >= found.p  # adjusted


def test_the_highest_mean_stands_first_and_real_sets_before_simulated(entries: list[Entry]) -> None:
    text = page(entries, HEADINGS, budget="30 minutes", failed=["vae-seed1: the loss was NaN"])
    section = text.split("## Real lesions: MSLUB")[1].split("## ")[0]
    methods = [line.split("|")[1].strip() for line in section.splitlines() if line.startswith("|")][2:]
    assert methods == ["atlas", "ddpm, ssim_ensemble", "ddpm, l1", "random"]
    assert text.index("Real lesions: MSLUB") < text.index("Simulated lesions: simulated ms") < text.index("IXI")
    assert "- failed: vae-seed1: the loss was NaN" in text
    assert "Research use only" in text
    above = entries[2].table[entries[2].table["metric"] == "above"].groupby("subject")["value"].mean().mean()
    assert cells(text, "Healthy test scans", "atlas")[1].startswith(f"{100 * above:.2f} (")
    assert cells(text, "Costs", "ddpm") == ["ddpm", "1,200", "10", "60", "0.25"]


def test_scans_that_failed_are_told(entries: list[Entry]) -> None:
    row = {"set": "MSLUB", "case": "c9", "subject": "s9", "split": "test", "metric": "failed", "message": "no file"}
    table = pd.concat([entries[2].table, pd.DataFrame([{**row, "value": 1.0}])]).fillna("")
    entry = Entry("atlas", 1, ("model",), table, COSTS)
    assert "- failed: atlas, seed 1: MSLUB c9: no file" in page([entry], HEADINGS, budget="1 s", failed=[])
    assert "Nothing could be evaluated" in page([], HEADINGS, budget="1 s", failed=["atlas-seed1: no memory"])


def test_the_scan_of_median_lesion_is_shown(entries: list[Entry]) -> None:
    assert telling_subject(entries[0].table, "MSLUB") == "s4"
    assert telling_subject(entries[0].table, "Brats21") is None


def test_every_map_has_its_panel_on_the_largest_slice() -> None:
    image, lesion = np.full((20, 24, 6), 0.5, np.float32), np.zeros((20, 24, 6), bool)
    lesion[5:9, 5:9, 4] = lesion[5:6, 5:6, 1] = True

    def coloured(maps: list[np.ndarray]) -> int:
        overlays = [Overlay(f"m{place}", anomaly, 0.1, 0.5) for place, anomaly in enumerate(maps)]
        figure = method_panels(image, lesion, overlays, title="a $title", scale_meaning="meaning")
        pixels = mpl_image.imread(io.BytesIO(figure.png()))
        return int(((pixels[..., 0] > 0.9) & (pixels[..., 2] < 0.1)).sum())

    found, elsewhere = lesion.astype(np.float32), np.zeros_like(image)
    elsewhere[5:9, 5:9, 1] = 1
    one, five = coloured([found]), coloured([found] * 5)
    assert one > 100
    assert five == pytest.approx(5 * one, rel=0.1), "of seven panels the last stands in a second row"
    assert coloured([elsewhere]) == 0, "the slice with the larger lesion is shown"
