from __future__ import annotations

from pathlib import Path

import pytest
from tiny_training import tiny, volumes_of_one_scan

from brainuad.train import fit
from brainuad.train.slices import TrainingVolumes


@pytest.fixture(scope="module")
def train_volumes() -> TrainingVolumes:
    return volumes_of_one_scan()


@pytest.fixture(scope="module")
def val_volumes(train_volumes: TrainingVolumes) -> TrainingVolumes:
    return TrainingVolumes(train_volumes.images[:2].flip(1), train_volumes.masks[:2].flip(1))


@pytest.fixture(scope="module")
def unbroken(
    train_volumes: TrainingVolumes, val_volumes: TrainingVolumes, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    config = tiny()
    config.callbacks.picture_every_n_epochs = 1
    config.logger.tensorboard = True
    fit(config, train_volumes, val_volumes, folder)
    return folder
