"""Two processes train to the weights of one, also when one of them dies and the run is started again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed_fit import train
from tiny_training import load, tiny

from brainuad.modelfile import read_model, write_model
from brainuad.models import DiffusionModel

SCRIPT = Path(__file__).parent / "distributed_fit.py"

pytestmark = pytest.mark.slow(seconds=20)


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


def train_by_two(*words: object) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*launcher, str(SCRIPT), *map(str, words)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def weights(folder: Path) -> dict[str, Any]:
    return load(folder / "checkpoints" / "last.ckpt")


@pytest.fixture(scope="module")
def alone(initial: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("alone")
    train(initial, folder, 1)
    return weights(folder)


@pytest.fixture(scope="module")
def whole_and_dead(initial: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of two trainings by the same two processes, of which one died after step 3 of the second."""
    whole, dead = (tmp_path_factory.mktemp(name) for name in ("whole", "dead"))
    result = train_by_two(initial, whole, dead, 3)
    assert result.returncode != 0
    assert "SIGKILL" in result.stderr, result.stderr
    return whole, dead


def assert_close(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["global_step"] == expected["global_step"] == 4
    pairs = [(found["state_dict"][name], value) for name, value in expected["state_dict"].items()]
    differences = torch.cat([(a - b).abs().flatten() for a, b in pairs])
    # Four steps of Adam at 1e-3 move every weight by up to 4e-3. Only biases in front of a normalisation, whose
    # gradients are nothing but rounding, may differ by some of that.
    assert differences.mean() < 1e-6
    assert differences.max() < 1e-3


def test_two_processes_train_to_the_weights_of_one(alone: dict[str, Any], whole_and_dead: tuple[Path, Path]) -> None:
    whole, _ = whole_and_dead
    assert (whole / "training.json").is_file()
    assert_close(weights(whole), alone)
    best, _, _, provenance, _ = read_model(whole / "model")
    assert provenance["step"] == 4  # the last step's is the best
    average = weights(whole)["state_dict"]
    assert all(torch.equal(value, average[f"average.{name}"]) for name, value in best.state_dict().items())


@pytest.mark.long
def test_a_dead_process_ends_the_run_and_a_restart_completes_it(
    alone: dict[str, Any], initial: Path, whole_and_dead: tuple[Path, Path]
) -> None:
    _, dead = whole_and_dead
    assert weights(dead)["global_step"] == 2  # the one before the death
    assert not (dead / "training.json").exists()
    result = train_by_two(initial, dead)
    assert result.returncode == 0, result.stderr
    assert_close(weights(dead), alone)
