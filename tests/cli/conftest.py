from __future__ import annotations

from pathlib import Path

import pytest
import torch
from paper_layout import build_tree

from brainuad.config import DataConfig
from brainuad.detector import Detector
from brainuad.models import DiffusionModel
from brainuad.models.diffusion import DiffusionSettings


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return build_tree(tmp_path / "data")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run with one tiny model."""
    config = DiffusionSettings(
        unet_dim=8, dim_mults=(1, 2), num_res_blocks=1, attention_head_dim=8, sigma_ens=(0.5, 1.1)
    )
    torch.manual_seed(3)
    data = DataConfig(imageDim=(40, 48, 30), smoothing_iterations=0, cache_dir=str(tmp_path_factory.mktemp("cache")))
    folder = tmp_path_factory.mktemp("run")
    Detector(DiffusionModel(config).requires_grad_(False).eval(), config, data).save(folder / "fold0/model")
    return folder
