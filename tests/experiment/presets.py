"""Presets of experiments, composed or with the size of the tests' scans, and a model that was saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module

from brainuad.config import DataConfig, ExperimentConfig
from brainuad.data.cohort import Case
from brainuad.experiment.settings import to_experiment
from brainuad.modelfile import write_model
from brainuad.models import DiffusionModel
from brainuad.models.diffusion import DiffusionSettings

Evaluated = list[tuple[Path, list[Case], Path]]

# as small as the tests' scans, two steps
SMALL = [
    "num_folds=1",
    "trainer.max_epochs=2",
    "trainer.accelerator=cpu",
    "model.cfg.unet_dim=32",
    "model.cfg.dim_mults=[1,1]",
    "model.cfg.num_res_blocks=1",
    "datamodule.cfg.imageDim=[40,48,32]",
    "datamodule.cfg.sample_set=True",
    "logger=none",
    "callbacks.picture_every_n_epochs=0",
]


def compose_presets(*overrides: str) -> ExperimentConfig:
    with initialize_config_module("brainuad.conf", version_base="1.3"):
        return to_experiment(compose("config", overrides=[*overrides, "data_dir=d", "log_dir=l"]))


def saved_model(folder: Path, **settings: Any) -> Path:
    """A model of T1 scans, untrained, with settings that no preset has."""
    values = {"unet_dim": 32, "dim_mults": (1, 1), "num_res_blocks": 1, "attention_head_dim": 32}
    model = DiffusionSettings(**values, test_timesteps=321, noise_draws=2, **settings)
    write_model(folder, DiffusionModel(model), model, DataConfig(imageDim=(40, 48, 32)))
    return folder
