"""Whole steps against Lightning's."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import load, table, tiny
from torch.utils._python_dispatch import TorchDispatchMode

from brainuad.models.anomalies import paint
from brainuad.models.base import settings_class
from brainuad.train import fit
from brainuad.train.module import Training
from brainuad.train.slices import TrainingVolumes
from brainuad.train.step import WholeStep, follow


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a processor take whole steps, as a GPU does."""

    monkeypatch.setattr(Training, "_records", True)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_whole_steps_have_the_losses_and_weights_of_plain_ones(
    precision: str,
    train_volumes: TrainingVolumes,
    val_volumes: TrainingVolumes,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """Epochs of two steps of two slices and one of one; clipped, augmented, averaged, warmed up."""
    config = tiny(precision=precision, gradient_clip_val=0.5)
    fit(config, train_volumes, val_volumes, tmp_path / "plain")
    request.getfixturevalue("whole")
    fit(config, train_volumes, val_volumes, tmp_path / "whole")
    plain, found = (table(tmp_path / name) for name in ("plain", "whole"))
    assert len(plain) == len(found) == 2
    for expected, row in zip(plain, found, strict=True):
        for loss in ("train_loss", "val_loss"):
            assert float(row[loss]) == pytest.approx(float(expected[loss]), rel=1e-3)
    weights, others = (load(tmp_path / name / "checkpoints" / "last.ckpt")["state_dict"] for name in ("plain", "whole"))
    # Adam divides small gradients by their own size, so rounding shows in a few weights: six steps move one by 4e-3
    differences = torch.cat([(others[name] - value).abs().flatten() for name, value in weights.items()])
    assert differences.mean() < 2e-5


def test_whole_steps_resume(
    whole: None, train_volumes: TrainingVolumes, val_volumes: TrainingVolumes, tmp_path: Path
) -> None:
    fit(tiny(max_steps=6), train_volumes, val_volumes, tmp_path / "unbroken")
    fit(tiny(max_steps=4), train_volumes, val_volumes, tmp_path / "broken")
    fit(tiny(max_steps=6, resume=True), train_volumes, val_volumes, tmp_path / "broken")
    expected, found = (
        load(tmp_path / name / "checkpoints" / "last.ckpt")["state_dict"] for name in ("unbroken", "broken")
    )
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def whole_step_of(module: Training) -> WholeStep:
    rate = torch.tensor(1e-3)
    optimizer = torch.optim.Adam(module.model.parameters(), lr=rate, fused=True)
    return WholeStep(module.model, module.average, optimizer, module.train_volumes)


@pytest.mark.parametrize("name", ["ddpm", "cddpm", "pddpm", "spark", "restoration", "ddpm_dae"])
def test_a_step_is_the_same_calls_on_the_same_memory(
    name: str, train_volumes: TrainingVolumes, val_volumes: TrainingVolumes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a graph needs: between steps nothing changes but the contents of the tensors that are held.

    Nothing is asked of the device, and nothing that the program holds is sent there.
    """
    monkeypatch.setattr("brainuad.models.restoration.paint", partial(paint, every_family=True))
    config = tiny()
    sizes = {"unet_dim": 16, "dim_mults": (1, 1), "num_res_blocks": 1, "attention_head_dim": 16}
    config.model.cfg = settings_class(name)(**({"decoder_width": 32} if name == "spark" else sizes))
    config.datamodule.cfg.aug_intensity = name != "restoration"
    module = Training(config, train_volumes, val_volumes)
    step = whole_step_of(module)
    step(module.draw(0), 1e-3, 0.5)  # makes the optimiser's state
    held = step.held[2]
    places = {name: tensor.data_ptr() for name, tensor in held.items()}

    def calls() -> list[str]:
        found: list[str] = []

        class Note(TorchDispatchMode):
            def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                found.append(str(call))
                return call(*args, **(kwargs or {}))

        with Note():
            step.compute(held)
        return found

    first = calls()
    step(module.draw(1), 2e-3, 0.9)
    assert calls() == first
    assert {name: tensor.data_ptr() for name, tensor in held.items()} == places
    waits = ("item", "_local_scalar_dense", "nonzero", "lift_fresh", "masked_select", "unique")
    assert not [call for call in first if any(word in call for word in waits)]


def test_a_loss_is_not_overwritten_by_the_next(train_volumes: TrainingVolumes, val_volumes: TrainingVolumes) -> None:
    module = Training(tiny(), train_volumes, val_volumes)
    step = whole_step_of(module)
    first = step(module.draw(0), 1e-3, 0.5)
    before = first.item()
    step(module.draw(1), 1e-3, 0.5)
    assert first.item() == before


def test_averages_follow() -> None:
    averages, weights = [torch.zeros(3), torch.ones(2)], [torch.ones(3), torch.full((2,), 3.0)]
    follow(averages, weights, torch.tensor(0.75))
    assert averages[0].tolist() == [0.25] * 3
    assert averages[1].tolist() == [1.5] * 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_graph_has_the_losses_of_single_calls(
    train_volumes: TrainingVolumes, val_volumes: TrainingVolumes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(accelerator="gpu", max_epochs=10, precision="32-true")
    fit(config, train_volumes, val_volumes, tmp_path / "graph")
    monkeypatch.setattr("brainuad.train.step.EAGER_STEPS", 10**9)
    fit(config, train_volumes, val_volumes, tmp_path / "eager")
    for expected, row in zip(table(tmp_path / "eager"), table(tmp_path / "graph"), strict=True):
        assert float(row["train_loss"]) == pytest.approx(float(expected["train_loss"]), rel=2e-2)
