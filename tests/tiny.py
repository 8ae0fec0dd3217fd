"""A detector and scans small enough for every test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from brainuad.calibration import Calibration
from brainuad.config import DataConfig
from brainuad.detector import Detector
from brainuad.models import DiffusionModel
from brainuad.models.diffusion import DiffusionSettings

FILES = Path(__file__).parent / "files"
IMAGE, MASK = FILES / "mslub19_t1_4mm.nii.gz", FILES / "mslub19_mask_4mm.nii.gz"
CALIBRATION = Calibration(
    scans=2, voxels=40_000, thresholds={"ssim_ensemble": {0.1: 0.5, 0.05: 0.6, 0.01: 0.7, 0.001: 0.8}}
)


def tiny_detector(**data: Any) -> Detector:
    """A random network of a few thousand weights on a grid of 4 mm voxels."""
    model_config = DiffusionSettings(
        unet_dim=8, dim_mults=(1, 2), num_res_blocks=1, attention_head_dim=8, unshuffle=2, sigma_ens=(0.5, 1.1)
    )
    settings = {"imageDim": (160, 192, 144), "rescaleFactor": 4.0, "affine": "used", "smoothing_iterations": 0}
    data_config = DataConfig(**(settings | data))
    torch.manual_seed(3)
    model = DiffusionModel(model_config)
    for parameter in model.parameters():  # a new network returns zeros
        torch.nn.init.normal_(parameter, std=0.05)
    model.requires_grad_(False).eval()
    return Detector(model, model_config, data_config, {"seed": 3, "steps": 0}, CALIBRATION, "tiny")
