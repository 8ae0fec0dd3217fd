"""Training of seconds: settings, volumes, and what is read from the files of a run."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from brainuad.config import ExperimentConfig, ModelNode
from brainuad.models.diffusion import DiffusionSettings
from brainuad.train.slices import TrainingVolumes, stack_volumes

FILES = Path(__file__).parents[1] / "files"


def volumes_of_one_scan() -> TrainingVolumes:
    """Five volumes out of one real scan: (5, 24, 32, 20)."""
    image = np.asarray(nib.load(FILES / "mslub19_t1_4mm.nii.gz").dataobj, dtype=np.float32) / 255
    mask = np.asarray(nib.load(FILES / "mslub19_mask_4mm.nii.gz").dataobj) > 0
    inner = slice(8, 32), slice(8, 40), slice(5, 25)
    image, mask = image[inner], mask[inner]
    return stack_volumes([(image * brightness, mask) for brightness in (1.0, 0.9, 0.8, 0.7, 0.6)])


def tiny(**changes: Any) -> ExperimentConfig:
    """Three steps an epoch, two epochs; changes name fields of the experiment or of its trainer."""
    model = DiffusionSettings(unet_dim=32, dim_mults=(1, 1), num_res_blocks=1, attention_head_dim=32, unshuffle=2)
    config = ExperimentConfig(model=ModelNode(model))
    data, trainer = config.datamodule.cfg, config.trainer
    data.batch_size, data.lr = 2, 1e-3
    trainer.max_epochs, trainer.accelerator, trainer.warmup_steps = 2, "cpu", 4
    config.callbacks.picture_every_n_epochs = 0
    config.logger.tensorboard = False
    for name, value in changes.items():
        setattr(config if hasattr(config, name) else trainer, name, value)
    return config


def load(path: Path) -> dict[str, Any]:
    return dict(torch.load(path, weights_only=True))


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as handle:
        return list(csv.DictReader(handle))
