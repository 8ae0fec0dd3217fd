"""The restoration model: what it is shown, what it learns, what it makes of slabs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from brainuad.errors import InputError
from brainuad.models.restoration import POSE_NUMBERS, VISIBLE, RestorationModel, RestorationSettings, posed


def tiny(**changes: Any) -> RestorationModel:
    sizes = {"unet_dim": 8, "dim_mults": (1, 2), "num_res_blocks": 1, "attention_head_dim": 8, "unshuffle": 2}
    torch.manual_seed(1)
    return RestorationModel(RestorationSettings(**(sizes | changes)))


def slabs(count: int = 3, slices: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    masks = torch.zeros(count, slices, 24, 20, dtype=torch.bool)
    masks[:, :, 3:-3, 3:-3] = True
    smooth = torch.nn.functional.avg_pool2d(torch.rand(masks.shape, generator=generator), 5, 1, 2)
    return smooth * masks, masks


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_training_pair_is_of_the_middle_slice() -> None:
    model, (images, masks) = tiny(), slabs()
    painted, clean, brain, lesion = model.training_pair(images, masks, model.draw(3, (24, 20), generator()))
    assert painted.shape == images.shape
    assert clean.shape == brain.shape == lesion.shape == (3, 24, 20)
    changed = (painted[:, 2] - clean).abs()
    assert torch.nn.functional.avg_pool2d(changed, 3, 1, 1)[lesion].min() > VISIBLE
    assert not (lesion & ~brain).any()
    assert not clean[~brain].any()
    assert not painted[:, 2][~brain].any()


def test_the_same_draws_give_the_same_loss() -> None:
    model, (images, masks) = tiny(), slabs()
    draws = model.draw(3, (24, 20), generator(4))
    assert all(len(numbers) == 3 for numbers in draws.values())
    loss = model.loss(images, masks, draws)
    assert loss.shape == ()
    assert torch.equal(loss, model.loss(images, masks, model.draw(3, (24, 20), generator(4))))
    assert not torch.equal(loss, model.loss(images, masks, model.draw(3, (24, 20), generator(5))))


def test_the_loss_of_one_batch_falls() -> None:
    model, (images, masks) = tiny(), slabs()
    draws = model.draw(3, (24, 20), generator())
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        optimiser.zero_grad()
        loss = model.loss(images, masks, draws)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def busy(**changes: Any) -> RestorationModel:
    """A model with random weights everywhere: a new one returns its input."""
    model = tiny(**changes).requires_grad_(False).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return model


def test_a_new_model_restores_its_input() -> None:
    images, masks = slabs()
    restored, marks, _ = tiny().infer(images, masks, None)
    torch.testing.assert_close(restored, images[:, 2:3])
    assert torch.equal(marks, torch.full_like(marks, 0.5))


@pytest.mark.parametrize("neighbours", [0, 2])
def test_parts_are_those_of_the_whole(neighbours: int) -> None:
    model, (images, masks) = busy(neighbours=neighbours), slabs(slices=2 * neighbours + 1)
    restored, marks, _ = model.infer(images, masks, None)
    assert restored.shape == marks.shape == (3, 1, 24, 20)
    assert torch.equal(model.reconstruct(images, None), restored)
    assert torch.equal(model.maps(images, masks, None), marks)
    assert 0 <= marks.min() < marks.max() <= 1


def test_a_mirrored_slab_gives_a_mirrored_result() -> None:
    model, (images, _) = busy(), slabs()
    for straight, mirrored in zip(model.both(images), model.both(images.flip(2)), strict=True):
        torch.testing.assert_close(mirrored.flip(2), straight, rtol=0, atol=1e-5)


def test_the_mirror_image_is_averaged() -> None:
    images, _ = slabs()
    single = busy(mirrored=False)
    straight, mirrored = single.both(images), single.both(images.flip(2))
    for mean, one, other in zip(busy().both(images), straight, mirrored, strict=True):
        torch.testing.assert_close(mean, (one + other.flip(2)) / 2)
    assert not torch.equal(straight[1], mirrored[1].flip(2))


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_poses_move_images_with_their_masks(seed: int) -> None:
    images, masks = slabs()
    uniform = torch.rand(3, POSE_NUMBERS, generator=generator(seed))
    moved, brain = posed(images, masks, uniform)
    assert moved.shape == images.shape
    assert brain.dtype == torch.bool
    assert not moved[~brain].any()
    assert 0.6 < brain.sum() / masks.sum() < 1.4
    for z in range(5):  # a slab moves as a whole
        assert torch.equal(brain[:, z], brain[:, 0])


def test_a_pose_of_halves_is_none_and_a_small_number_mirrors() -> None:
    images, masks = slabs()
    still = torch.full((3, POSE_NUMBERS), 0.5)
    moved, brain = posed(images, masks, still)
    torch.testing.assert_close(moved, images, rtol=0, atol=1e-5)
    assert torch.equal(brain, masks)
    still[:, 0] = 0.1
    torch.testing.assert_close(posed(images, masks, still)[0], images.flip(2), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"neighbours": -1}, "neighbours"),
        ({"inverted": 1.5}, "inverted"),
        ({"families": ("tissue", "tumor")}, "families"),
        ({"unet_dim": 0}, "unet_dim"),
    ],
)
def test_unusable_settings_are_named(changes: dict[str, Any], name: str) -> None:
    with pytest.raises(InputError, match=rf"model\.cfg\.{name}"):
        tiny(**changes)
