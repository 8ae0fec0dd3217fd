"""Augmentation against TorchIO on whole volumes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torchio as tio
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from brainuad.train.augmentation import (
    BIAS_POWERS,
    Augmentations,
    augmentations_of,
    augmented_slices,
    dense_augmented_slices,
    draw_uniform,
)

SHAPE = (26, 31, 19)  # even and odd lengths: the centre of k-space differs


@dataclass(frozen=True)
class Augmentation:
    """Parameters of one volume; the defaults change nothing."""

    gamma: float = 1.0
    bias: tuple[float, ...] = (0.0,) * len(BIAS_POWERS)
    blur_std: tuple[float, float, float] = (0.0, 0.0, 0.0)
    num_ghosts: int = 0
    ghost_axis: int = 0
    ghost_intensity: float = 0.0


def batch_of(augmentations: Sequence[Augmentation]) -> Augmentations:
    columns = zip(*map(astuple, augmentations), strict=True)
    return Augmentations(*(torch.from_numpy(np.array(column)) for column in columns))


def volume(seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> torch.Tensor:
    """Smooth blob in a zero background with some negative overshoot."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(shape, generator=generator) - 0.05
    image[:3], image[-3:], image[:, :2], image[:, -4:], image[:, :, :2] = 0, 0, 0, 0, 0
    return image


def torchio_slices(image: torch.Tensor, augmentation: Augmentation) -> torch.Tensor:
    """The whole volume through TorchIO's deterministic transforms."""
    transforms: list[tio.Transform] = [tio.Gamma(augmentation.gamma)]
    if any(augmentation.bias):
        transforms.append(tio.BiasField(list(augmentation.bias), order=3))
    transforms.append(tio.Blur(augmentation.blur_std))
    if augmentation.num_ghosts:
        transforms.append(
            tio.Ghosting(augmentation.num_ghosts, augmentation.ghost_axis, augmentation.ghost_intensity, restore=None)
        )
    return tio.Compose(transforms)(tio.ScalarImage(tensor=image[None])).data[0]


def one_slice(image: torch.Tensor, z: int, augmentation: Augmentation) -> torch.Tensor:
    """Slice ``z`` of one augmented volume."""
    return augmented_slices(image[None], torch.tensor([0]), torch.tensor([z]), batch_of([augmentation]))[0]


def draw_augmentations(count: int, generator: torch.Generator) -> list[Augmentation]:
    columns = (column.tolist() for column in augmentations_of(draw_uniform(count, generator)))
    return [Augmentation(*row) for row in zip(*columns, strict=True)]


BIAS = tuple(np.random.default_rng(0).uniform(-0.5, 0.5, len(BIAS_POWERS)).tolist())
CASES = {
    "none": Augmentation(),
    "gamma": Augmentation(gamma=0.76),
    "bias": Augmentation(bias=BIAS),
    "blur": Augmentation(blur_std=(0.3, 1.9, 1.2)),
    "blur_below_one_voxel": Augmentation(blur_std=(0.05, 0.1, 0.12)),
    "ghosts_x": Augmentation(num_ghosts=4, ghost_axis=0, ghost_intensity=0.9),
    "ghosts_y": Augmentation(num_ghosts=7, ghost_axis=1, ghost_intensity=0.6),
    "ghosts_z": Augmentation(num_ghosts=10, ghost_axis=2, ghost_intensity=1.0),
    "all_z": Augmentation(1.3, BIAS, (1.4, 0.2, 1.9), 5, 2, 0.8),
    "all_x": Augmentation(0.8, BIAS, (1.4, 0.2, 1.9), 6, 0, 0.7),
}


@pytest.mark.parametrize("augmentation", CASES.values(), ids=CASES)
def test_augmented_slice_is_the_slice_of_torchios_volume(augmentation: Augmentation) -> None:
    image = volume()
    expected = torchio_slices(image, augmentation)
    for z in (0, 3, 9, SHAPE[2] - 1):
        torch.testing.assert_close(one_slice(image, z, augmentation), expected[:, :, z], atol=1e-4, rtol=0)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), z=st.integers(0, SHAPE[2] - 1))
def test_drawn_augmentations_equal_torchio(seed: int, z: int) -> None:
    (augmentation,) = draw_augmentations(1, torch.Generator().manual_seed(seed))
    image = volume(seed)
    expected = torchio_slices(image, augmentation)[:, :, z]
    torch.testing.assert_close(one_slice(image, z, augmentation), expected, atol=1e-4, rtol=1e-4)


def test_a_batch_is_its_members_and_their_slices_of_torchios_volumes() -> None:
    augmentations = [*CASES.values(), *draw_augmentations(12, torch.Generator().manual_seed(0))]
    images = torch.stack([volume(seed) for seed in range(3)])
    indices = torch.arange(len(augmentations)) % 3
    slices = torch.arange(len(augmentations)) * 7 % SHAPE[2]
    batch = augmented_slices(images, indices, slices, batch_of(augmentations))
    assert batch.shape == (len(augmentations), *SHAPE[:2])
    for found, number, z, augmentation in zip(batch, indices.tolist(), slices.tolist(), augmentations, strict=True):
        alone = one_slice(images[number], z, augmentation)
        torch.testing.assert_close(found, alone, atol=1e-6, rtol=1e-6)
        expected = torchio_slices(images[number], augmentation)[:, :, z]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    # the first has no augmentation: the others leave it as it is stored
    assert torch.equal(batch[0], images[0, :, :, 0])


def test_volumes_are_not_changed() -> None:
    image = volume()
    one_slice(image, 9, CASES["all_z"])
    assert torch.equal(image, volume())


def test_few_calls_reach_the_device_and_nothing_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device without data stands for one that is busy: reading anything back from it fails."""
    calls: Counter[str] = Counter()

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = call(*args, **(kwargs or {}))
            inputs = tree_leaves((args, kwargs))
            if any(isinstance(value, torch.Tensor) and value.is_meta for value in inputs):
                calls["view" if call.is_view else "kernel"] += 1
            elif isinstance(result, torch.Tensor) and result.is_meta:
                calls["upload"] += 1
            return result

    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())  # knows no such device
    augmentations = augmentations_of(draw_uniform(32, torch.Generator().manual_seed(0)))
    images = torch.empty((32, *SHAPE), device="meta")
    with Count():
        batch = augmented_slices(images, torch.arange(32), torch.arange(32) % SHAPE[2], augmentations)
    assert batch.shape == (32, *SHAPE[:2])
    assert 0 < calls["upload"] <= 8
    assert 0 < calls["kernel"] <= 20


def test_draws_follow_the_probabilities_and_ranges() -> None:
    drawn = draw_augmentations(8000, torch.Generator().manual_seed(1))
    ghosted = [a for a in drawn if a.num_ghosts]
    blurred = [a for a in drawn if max(a.blur_std) > 0]
    biased = [a for a in drawn if any(a.bias)]
    bent = [a.gamma for a in drawn if a.gamma != 1]
    for count, probability in ((bent, 0.5), (biased, 0.25), (blurred, 0.25), (ghosted, 0.5)):
        assert len(count) / len(drawn) == pytest.approx(probability, abs=0.02)
    assert np.log(bent).min() == pytest.approx(-0.3, abs=0.01)
    assert np.log(bent).max() == pytest.approx(0.3, abs=0.01)
    assert np.abs([a.bias for a in biased]).max() == pytest.approx(0.5, abs=0.01)
    assert np.max([a.blur_std for a in blurred]) == pytest.approx(2, abs=0.01)
    assert {a.num_ghosts for a in ghosted} == set(range(4, 11))
    assert np.mean([a.ghost_axis for a in ghosted]) == pytest.approx(1, abs=0.05)
    assert {a.ghost_axis for a in ghosted} == {0, 1, 2}
    assert min(a.ghost_intensity for a in ghosted) == pytest.approx(0.5, abs=0.01)
    assert max(a.ghost_intensity for a in ghosted) == pytest.approx(1, abs=0.01)
    # the gates are independent
    all_four = sum(bool(a.num_ghosts and any(a.bias) and max(a.blur_std) and a.gamma != 1) for a in drawn)
    assert all_four / len(drawn) == pytest.approx(1 / 64, abs=0.006)


def test_augmentation_keeps_single_precision_under_autocast() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = one_slice(volume(), 9, CASES["all_z"])
    assert torch.equal(inside, one_slice(volume(), 9, CASES["all_z"]))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31))
def test_dense_augmentation_is_the_sparse_one(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.stack([volume(number) for number in range(3)])
    uniform = draw_uniform(24, generator)
    indices = torch.randint(3, (24,), generator=generator)
    slices = torch.randint(SHAPE[2], (24,), generator=generator)
    expected = augmented_slices(images, indices, slices, augmentations_of(uniform))
    found = dense_augmented_slices(images, indices, slices, uniform.float())
    # of numbers in single precision, where the other way draws its limits in double
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_dense_augmentation_is_the_same_few_calls_whatever_was_drawn() -> None:
    def calls(seed: int) -> list[str]:
        found: list[str] = []

        class Note(TorchDispatchMode):
            def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                found.append(str(call))
                return call(*args, **(kwargs or {}))

        uniform = draw_uniform(4, torch.Generator().manual_seed(seed)).float()
        with Note():
            dense_augmented_slices(volume()[None], torch.zeros(4).long(), torch.full((4,), 9), uniform)
        return found

    assert calls(0) == calls(1) == calls(2)
