"""A tiny detector, and its evaluation on a small cohort of real scans with painted lesions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from painted import SCORES, repaint
from paper_layout import build_tree, place_scan, split_row, write_split

from brainuad.config import DataConfig
from brainuad.data.cohort import Case, read_cases
from brainuad.detector import Detector
from brainuad.models import DiffusionModel
from brainuad.models.diffusion import DiffusionSettings
from brainuad.study import evaluate_cases, read_cases_csv, wide


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
    found = read_cases(data_dir, modality="t1")
    for number, case in enumerate(found):
        repaint(case, number)
    return found


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    config = DiffusionSettings(
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
