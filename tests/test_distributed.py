"""Two processes train to the weights of one, also when one of them dies and the run is started again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train import tiny

from brainuad.modelfile import write_model
from brainuad.models import DiffusionModel

SCRIPT = Path(__file__).parent / "distributed_fit.py"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def initial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights: Adam would blow up the rounding in the tiny gradients of one that returns zeros."""
    folder = tmp_path_factory.mktemp("initial")
    config = tiny()
    torch.manual_seed(0)
    model = DiffusionModel(config.model.cfg)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    write_model(folder, model, config.model.cfg, config.datamodule.cfg)
    return folder


def train(folder: Path, devices: int, *words: object) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(devices)]
    command = [sys.executable, *(launcher if devices > 1 else []), str(SCRIPT), str(folder), str(devices)]
    paths = os.pathsep.join([str(SCRIPT.parent), str(SCRIPT.parent / "data")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *map(str, words)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def weights(folder: Path) -> dict[str, Any]:
    return dict(torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True))


@pytest.fixture(scope="module")
def alone(initial: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("alone")
    result = train(folder, 1, initial)
    assert result.returncode == 0, result.stderr
    return weights(folder)


def assert_close(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["global_step"] == expected["global_step"] == 4
    pairs = [(found["state_dict"][name], value) for name, value in expected["state_dict"].items()]
    differences = torch.cat([(a - b).abs().flatten() for a, b in pairs])
    # Four steps of Adam at 1e-3 move every weight by up to 4e-3. Only biases in front of a normalisation, whose
    # gradients are nothing but rounding, may differ by some of that.
    assert differences.mean() < 1e-6
    assert differences.max() < 1e-3


def test_two_processes_train_to_the_weights_of_one(
    alone: dict[str, Any], initial: Path, tmp_path: Path
) -> None:
    result = train(tmp_path, 2, initial)
    assert result.returncode == 0, result.stderr
    assert_close(weights(tmp_path), alone)


def test_a_dead_process_ends_the_run_and_a_restart_completes_it(
    alone: dict[str, Any], initial: Path, tmp_path: Path
) -> None:
    assert train(tmp_path, 2, initial, 3).returncode != 0
    assert weights(tmp_path)["global_step"] == 2  # the one before the death
    result = train(tmp_path, 2, initial)
    assert result.returncode == 0, result.stderr
    assert_close(weights(tmp_path), alone)
