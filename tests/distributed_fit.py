"""Train the tiny model of ``test_train``: what ``test_distributed`` starts in several processes.

torchrun --nproc-per-node 2 tests/distributed_fit.py OUT DEVICES INITIAL_MODEL [STOP_AFTER_STEP]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from test_train import tiny, volumes_of_one_scan

from brainuad.data.slices import TrainingVolumes
from brainuad.train import fit
from brainuad.train.callbacks import Epochs


def main() -> None:
    """Train, resuming what is there; after a given step one process kills itself."""
    torch.set_num_threads(1)
    folder, devices = Path(sys.argv[1]), int(sys.argv[2])
    stop = int(sys.argv[4]) if len(sys.argv) > 4 else None
    config = tiny(devices=devices, resume=True, initial_weights=sys.argv[3])
    config.callbacks.checkpoint_every_seconds = 0  # after each step
    config.datamodule.cfg.batch_size = 4  # of five volumes: the second batch of an epoch has one slice
    train = volumes_of_one_scan()
    val = TrainingVolumes(train.images[:2].flip(1), train.masks[:2].flip(1))
    original = Epochs.on_train_batch_end

    def hook(self: Epochs, trainer: object, *args: object) -> None:
        if stop is not None and trainer.global_step == stop and trainer.global_rank == devices - 1:  # type: ignore[attr-defined]
            os.kill(os.getpid(), 9)
        original(self, trainer, *args)  # type: ignore[arg-type]

    Epochs.on_train_batch_end = hook  # type: ignore[method-assign, assignment]
    fit(config, train, val, folder)


if __name__ == "__main__":
    main()
