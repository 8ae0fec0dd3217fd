"""The notebooks' cells, run in their order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
import pytest

FOLDER = Path(__file__).parents[1] / "examples"


def cells(name: str) -> list[dict[str, Any]]:
    stored = json.loads((FOLDER / name).read_text(encoding="utf-8"))["cells"]
    return [cell for cell in stored if cell["cell_type"] == "code"]


def run(name: str) -> dict[str, Any]:
    """Run a notebook's cells in one namespace, and return that."""
    matplotlib.use("Agg")
    names: dict[str, Any] = {}
    for number, cell in enumerate(cells(name)):
        exec(compile("".join(cell["source"]), f"{name}[{number}]", "exec"), names)  # noqa: S102
    return names


@pytest.mark.parametrize("name", ["score_a_scan.ipynb", "compare_scores.ipynb"])
def test_they_are_stored_with_what_they_print(name: str) -> None:
    assert (FOLDER / name).stat().st_size < 600_000
    outputs = [output for cell in cells(name) for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output["output_type"] == "error"]


@pytest.mark.long
def test_a_scan_is_scored() -> None:
    names = run("score_a_scan.ipynb")
    assert names["result"].to_frame()["rare"].any()
    assert names["precision"] > 3 * names["lesion"].mean()


@pytest.mark.long
def test_scores_are_compared() -> None:
    names = run("compare_scores.ipynb")
    assert set(names["cases"]["score"]) == {"ssim_ensemble", "rarity"}
    assert isinstance(names["cases"], pd.DataFrame)
    assert {row.contestant for row in names["found"].rows} == {"rarity"}
