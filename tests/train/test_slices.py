"""Sampling of training slices."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from brainuad.train.slices import TrainingVolumes, draw_batch, draw_slice_indices, stack_volumes, take_batch, take_slabs

SHAPE = (26, 31, 19)


def volume(seed: int) -> torch.Tensor:
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(seed)) - 0.05


@pytest.fixture
def volumes() -> TrainingVolumes:
    pairs = [(volume(seed).numpy(), np.zeros(SHAPE, bool)) for seed in range(3)]
    for number, (_, mask) in enumerate(pairs):
        mask[10, 10, [2 + number, 7, 11]] = True
    return stack_volumes(pairs)


def test_stacked_volumes_are_contiguous_float_and_bool(volumes: TrainingVolumes) -> None:
    assert volumes.images.shape == volumes.masks.shape == (3, *SHAPE)
    assert volumes.images.dtype == torch.float32
    assert volumes.images.is_contiguous()
    assert volumes.masks.dtype == torch.bool
    assert len(volumes.to("cpu")) == 3


def test_slices_are_drawn_uniformly_from_those_with_brain(volumes: TrainingVolumes) -> None:
    indices = torch.arange(3).repeat(600)
    drawn = draw_slice_indices(volumes, indices, torch.Generator().manual_seed(0))
    for number in range(3):
        found, counts = drawn[indices == number].unique(return_counts=True)
        assert found.tolist() == [2 + number, 7, 11]
        assert counts.min() > 150


def sample(
    volumes: TrainingVolumes, indices: torch.Tensor, seed: int, *, augment: bool, rows: slice = slice(None)
) -> torch.Tensor:
    drawn = draw_batch(volumes, indices, torch.Generator().manual_seed(seed), augment=augment)
    return take_batch(volumes, {name: numbers[rows] for name, numbers in drawn.items()})[0]


def test_sample_without_augmentation_is_the_stored_slice(volumes: TrainingVolumes) -> None:
    indices = torch.tensor([2, 0, 2, 1])
    batch = sample(volumes, indices, 5, augment=False)
    slices = draw_slice_indices(volumes, indices, torch.Generator().manual_seed(5))
    assert batch.shape == (4, 1, *SHAPE[:2])
    for found, number, z in zip(batch, indices.tolist(), slices.tolist(), strict=True):
        assert torch.equal(found[0], volumes.images[number, :, :, z])


def test_masks_belong_to_the_slices(volumes: TrainingVolumes) -> None:
    drawn = draw_batch(volumes, torch.arange(3), torch.Generator().manual_seed(0), augment=True)
    images, masks = take_batch(volumes, drawn)
    assert images.shape == masks.shape == (3, 1, *SHAPE[:2])
    assert masks.sum((1, 2, 3)).tolist() == [1, 1, 1]


def test_slabs_repeat_the_outermost_slice(volumes: TrainingVolumes) -> None:
    slabs = take_slabs(volumes.images, torch.tensor([1, 0]), torch.tensor([0, 9]), neighbours=2)
    assert slabs.shape == (2, 5, *SHAPE[:2])
    for slab, number, numbers in ((slabs[0], 1, (0, 0, 0, 1, 2)), (slabs[1], 0, (7, 8, 9, 10, 11))):
        for found, z in zip(slab, numbers, strict=True):
            assert torch.equal(found, volumes.images[number, :, :, z])


def test_slabs_are_not_augmented(volumes: TrainingVolumes) -> None:
    drawn = draw_batch(volumes, torch.arange(3), torch.Generator().manual_seed(0), augment=True)
    with pytest.raises(ValueError, match="slabs of several slices"):
        take_batch(volumes, drawn, neighbours=1)


def test_same_seed_same_batch(volumes: TrainingVolumes) -> None:
    indices = torch.arange(3).repeat(4)
    first, again, other = (sample(volumes, indices, seed, augment=True) for seed in (7, 7, 8))
    assert first.shape == (12, 1, *SHAPE[:2])
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_share_is_the_rows_of_the_whole(volumes: TrainingVolumes) -> None:
    indices = torch.arange(3).repeat(4)
    whole, first, second = (
        sample(volumes, indices, 7, augment=True, rows=rows) for rows in (slice(None), slice(0, 5), slice(5, 12))
    )
    torch.testing.assert_close(torch.cat([first, second]), whole, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "no volumes"),
        ([(np.zeros((4, 4)), np.ones((4, 4)))], r"\(4, 4\)"),
        ([(np.zeros((4, 4, 4)), np.ones((4, 4, 3)))], r"\(4, 4, 3\)"),
        ([(np.zeros((4, 4, 4)), np.zeros((4, 4, 4)))], "mask of volume 0 is empty"),
    ],
)
def test_stack_names_what_is_wrong(pairs: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stack_volumes(pairs)
