"""Batches, noise and losses of training outside of a run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_training import tiny

from brainuad.config import ExperimentConfig
from brainuad.errors import InputError
from brainuad.train.batches import batch_indices, count_batches, seeded_generator, validation_slices
from brainuad.train.budget import learning_rate_factor
from brainuad.train.fit import quiet_lightning
from brainuad.train.module import Training
from brainuad.train.slices import TrainingVolumes


def attached(config: ExperimentConfig, train: TrainingVolumes, val: TrainingVolumes) -> Training:
    """A training module outside of a run."""
    from lightning.pytorch import Trainer

    module = Training(config, train, val)
    with quiet_lightning():
        module.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    # a new network returns zeros and would give every slice the same loss but for the slice
    with torch.no_grad():
        for parameter in module.average.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)), alpha=0.05)
    return module


def test_validation_loss_is_fixed_but_for_the_reference(
    train_volumes: TrainingVolumes, val_volumes: TrainingVolumes
) -> None:
    fixed = attached(tiny(), train_volumes, val_volumes)
    assert fixed.validation_loss(1) == fixed.validation_loss(2)
    fresh = attached(tiny(reference=True), train_volumes, val_volumes)
    assert fresh.validation_loss(1) == fresh.validation_loss(1)
    assert fresh.validation_loss(1) != fresh.validation_loss(2)


def test_training_batch_depends_on_seed_and_step_only(
    train_volumes: TrainingVolumes, val_volumes: TrainingVolumes
) -> None:
    first, second = (attached(tiny(), train_volumes, val_volumes) for _ in range(2))
    second.training_batch(0)
    torch.rand(1)
    assert torch.equal(first.training_batch(5)[0], second.training_batch(5)[0])
    assert not torch.equal(first.training_batch(3)[0], second.training_batch(0)[0])
    other = attached(tiny(seed=1), train_volumes, val_volumes)
    assert not torch.equal(first.training_batch(0)[0], other.training_batch(0)[0])


@pytest.mark.parametrize("devices", [2, 3])
def test_devices_share_the_batch_of_a_step(
    devices: int, train_volumes: TrainingVolumes, val_volumes: TrainingVolumes
) -> None:
    config = tiny()
    config.datamodule.cfg.batch_size = 4  # of five volumes: batches of four and of one
    module = attached(config, train_volumes, val_volumes)
    module._fabric = None
    for step in range(2):
        module._trainer = SimpleNamespace(world_size=1, global_rank=0, global_step=step)
        alone, loss = module.training_batch(step), module.training_step(0, 0)
        shares, losses = [], []
        for rank in range(devices):
            module._trainer = SimpleNamespace(world_size=devices, global_rank=rank, global_step=step)
            shares.append(module.training_batch(step))
            losses.append(module.training_step(0, 0))
        counted = [images for images, _, _, weight in shares if weight]
        torch.testing.assert_close(torch.cat(counted), alone[0])  # sums of other lengths may round otherwise
        torch.testing.assert_close(torch.stack(losses).mean(), loss)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 8), st.integers(0, 3), st.integers(0, 2**31))
def test_every_epoch_is_a_permutation(volumes: int, batch_size: int, epoch: int, seed: int) -> None:
    batches = -(-volumes // batch_size)
    steps = range(epoch * batches, (epoch + 1) * batches)
    drawn = torch.cat([batch_indices(volumes, batch_size, batches, seed, step) for step in steps])
    if batch_size <= volumes:
        assert sorted(drawn.tolist()) == list(range(volumes))
    else:  # one step, that takes every volume equally often, but for the last permutation
        counts = torch.bincount(drawn, minlength=volumes)
        assert counts.sum() == batch_size
        assert counts.max() - counts.min() <= 1


def test_generators_are_pure_and_independent() -> None:
    draws = {
        (seed, stream, index): torch.rand(4, generator=seeded_generator(seed, stream, index)).tolist()
        for seed in (0, 1)
        for stream in ("a", "b")
        for index in (0, 1)
    }
    assert len({tuple(draw) for draw in draws.values()}) == len(draws)
    assert draws[1, "b", 1] == torch.rand(4, generator=seeded_generator(1, "b", 1)).tolist()


def test_validation_slices_lie_in_the_brain(val_volumes: TrainingVolumes) -> None:
    numbers, slices = validation_slices(val_volumes)
    assert numbers.tolist() == [0] * 4 + [1] * 4
    assert all(val_volumes.masks[number, :, :, z].any() for number, z in zip(numbers, slices, strict=True))
    assert len(set(slices[:4].tolist())) == 4


@pytest.mark.parametrize(
    ("limit", "batches"), [(1.0, 5), (0.5, 2), (3, 3), (50, 5), (0, None), (0.1, None), (1.5, None)]
)
def test_limit_train_batches(limit: float, batches: int | None) -> None:
    config = tiny(limit_train_batches=limit)
    if batches is None:
        with pytest.raises(InputError, match="limit_train_batches"):
            count_batches(9, config)
    else:
        assert count_batches(9, config) == batches


def test_learning_rate_rises_stays_and_falls() -> None:
    shares = [learning_rate_factor(step, 10, 4, 5) for step in range(10)]
    assert shares == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])
    assert learning_rate_factor(0, 10, 0, 0) == 1
