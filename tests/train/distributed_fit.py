"""Train the tiny model: what ``test_distributed`` starts in several processes.

torchrun --nproc-per-node 2 tests/train/distributed_fit.py INITIAL_MODEL OUT
torchrun --nproc-per-node 2 tests/train/distributed_fit.py INITIAL_MODEL OUT OTHER_OUT STOP_AFTER_STEP
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from tiny_training import tiny, volumes_of_one_scan

from brainuad.train import fit
from brainuad.train.callbacks import Epochs
from brainuad.train.slices import TrainingVolumes


def train(initial: Path, folder: Path, devices: int) -> None:
    """Train for four steps, resuming what is there."""
    config = tiny(devices=devices, resume=True, initial_weights=str(initial))
    config.callbacks.checkpoint_every_seconds = 0  # after each step
    config.datamodule.cfg.batch_size = 4  # of five volumes: the second batch of an epoch has one slice
    train = volumes_of_one_scan()
    val = TrainingVolumes(train.images[:2].flip(1), train.masks[:2].flip(1))
    fit(config, train, val, folder)


def die_after(step: int) -> None:
    """Have the last process kill itself when step ``step`` is done, before it is saved."""
    original = Epochs.on_train_batch_end

    def hook(self: Epochs, trainer: Any, *args: Any) -> None:
        if trainer.global_step == step and trainer.global_rank == trainer.world_size - 1:
            os.kill(os.getpid(), 9)
        original(self, trainer, *args)

    patch.object(Epochs, "on_train_batch_end", hook).start()


def main() -> None:
    """Train to the end; with another folder train once more there until one process kills itself."""
    torch.set_num_threads(1)
    initial, folder, devices = Path(sys.argv[1]), Path(sys.argv[2]), int(os.environ["WORLD_SIZE"])
    train(initial, folder, devices)
    if len(sys.argv) > 3:
        die_after(int(sys.argv[4]))
        train(initial, Path(sys.argv[3]), devices)


if __name__ == "__main__":
    main()
