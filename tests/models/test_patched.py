"""Patched diffusion: boxes that cover a slice, noise in one of them, an error that counts in it alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from brainuad.errors import InputError
from brainuad.models import PatchedDiffusionModel
from brainuad.models.patched import PatchedSettings, box_corners, boxes


def tiny(**changes: Any) -> PatchedDiffusionModel:
    torch.manual_seed(1)
    sizes = {"unet_dim": 8, "dim_mults": (1, 2), "num_res_blocks": 1, "attention_head_dim": 8, "patch_size": 8}
    model = PatchedDiffusionModel(PatchedSettings(**(sizes | changes)))
    for parameter in model.parameters():  # a new network returns zeros
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slices(count: int = 3, size: tuple[int, int] = (16, 16)) -> torch.Tensor:
    return torch.rand(count, 1, *size, generator=generator(2))


def test_the_published_boxes() -> None:
    assert box_corners((96, 96), 48).tolist() == [[0, 0], [0, 48], [48, 0], [48, 48]]
    assert box_corners((80, 40), 48).tolist() == [[0, 0], [32, 0]]  # moved inside, and cut


@given(size=st.tuples(st.integers(1, 60), st.integers(1, 60)), edge=st.integers(1, 70))
def test_boxes_cover_a_slice(size: tuple[int, int], edge: int) -> None:
    found = boxes(box_corners(size, edge), size, edge)
    assert found.any(0).all()
    assert (found.sum((1, 2)) == min(edge, size[0]) * min(edge, size[1])).all()
    assert len(found) == -(-size[0] // edge) * -(-size[1] // edge)


def test_only_the_box_is_noised_and_counts() -> None:
    model, images = tiny(loss="l2"), slices()
    draws = model.draw(3, (16, 16), generator())
    assert all(len(numbers) == 3 for numbers in draws.values())
    seen = []

    def denoise(noisy: torch.Tensor, t: torch.Tensor, condition: None) -> torch.Tensor:
        seen.append(noisy)
        return noisy

    model.denoise = denoise
    loss = model.loss(images, images > 0, draws)
    error = (seen[0] - (2 * images - 1))[:, 0]
    for (x, y), changed in zip(draws["corners"].tolist(), error, strict=True):
        assert changed[x : x + 8, y : y + 8].all()
        assert torch.count_nonzero(changed) == 64
    torch.testing.assert_close(loss, error.square().sum() / (3 * 64))


def test_each_box_is_restored_from_the_others() -> None:
    """Against the same, spelled out for one slice, with the noise that the model draws."""
    model, images = tiny(noise_draws=2), slices(1)
    restored = model.reconstruct(images, generator(4))
    source, clean, t = generator(4), 2 * images - 1, torch.tensor([499])
    expected = torch.zeros_like(images)
    for _ in range(2):
        noisy = model.q_sample(clean, t, model.draw_noise(images, source))
        for x, y in ((0, 0), (0, 8), (8, 0), (8, 8)):
            box = (..., slice(x, x + 8), slice(y, y + 8))
            shown = clean.clone()
            shown[box] = noisy[box]
            with torch.no_grad():
                expected[box] += model.denoise(shown, t, None)[box] / 2
    torch.testing.assert_close(2 * restored - 1, expected)


def test_a_box_as_large_as_the_slice_is_plain_diffusion() -> None:
    model, images = tiny(patch_size=16), slices()
    plain = super(PatchedDiffusionModel, model)
    torch.testing.assert_close(model.noised(images, generator()), plain.noised(images, generator()))
    draws = model.draw(3, (16, 16), generator())
    torch.testing.assert_close(model.loss(images, images > 0, draws), plain.loss(images, images > 0, draws))


def test_batches_and_odd_sizes() -> None:
    model, images = tiny(), slices(5, (11, 20))
    whole = model.reconstruct(images, generator(), batch_size=5)
    assert whole.shape == images.shape
    torch.testing.assert_close(model.reconstruct(images, generator(), batch_size=2), whole, rtol=0, atol=1e-4)
    shown = model.noised(images, generator())
    assert torch.equal(shown[:, :, 8:], images[:, :, 8:])
    assert (shown[:, :, :8, :8] != images[:, :, :8, :8]).all()


def test_the_loss_of_one_batch_falls() -> None:
    model, images = tiny(), slices()
    draws = model.draw(3, (16, 16), generator())
    optimiser, losses = torch.optim.Adam(model.parameters(), lr=3e-3), []
    for _ in range(20):
        optimiser.zero_grad()
        loss = model.loss(images, images > 0, draws)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_an_unusable_box_is_named() -> None:
    with pytest.raises(InputError, match=r"model\.cfg\.patch_size: 0 is not positive"):
        tiny(patch_size=0)
