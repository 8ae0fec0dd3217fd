"""Masked pretraining: what is hidden, what counts, and that all cells are filled in from others."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from brainuad.errors import InputError
from brainuad.models import SparkModel
from brainuad.models.spark import SparkSettings


def tiny(**changes: Any) -> SparkModel:
    torch.manual_seed(1)
    return SparkModel(SparkSettings(**({"decoder_width": 32} | changes)))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slices(count: int = 3, size: tuple[int, int] = (48, 40)) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.rand(count, 1, *size, generator=generator(2))
    return torch.nn.functional.avg_pool2d(images, 5, 1, 2), torch.ones_like(images, dtype=torch.bool)


def test_three_of_nine_cells_stay() -> None:
    shown = tiny(encoder="resnet50").draw(50, (96, 96), generator())["shown"]
    assert shown.shape == (50, 3, 3)
    assert (shown.sum((1, 2)) == 3).all()
    assert (shown.sum(0) > 0).all()
    assert tiny(mask_ratio=0.01).draw(4, (48, 40), generator())["shown"].sum((1, 2)).tolist() == [8] * 4


def test_a_slice_of_one_cell_is_refused() -> None:
    with pytest.raises(InputError, match="slices of 16 x 9 pixels are single cells"):
        tiny().draw(2, (16, 9), generator())


def test_only_hidden_pixels_count() -> None:
    model, (images, masks) = tiny(), slices()
    draws = model.draw(3, (48, 40), generator())
    filled = model.fill_in(2 * images - 1, draws["shown"])
    hidden = ~draws["shown"].repeat_interleave(16, 1).repeat_interleave(16, 2)[:, None, :, :40]
    expected = (filled - (2 * images - 1))[hidden].square().mean()
    torch.testing.assert_close(model.loss(images, masks, draws), expected)


def test_what_is_hidden_is_not_seen() -> None:
    model, (images, _) = tiny(), slices()
    shown = model.draw(3, (48, 40), generator())["shown"]
    hidden = ~shown.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, None, :, :40]
    other = torch.where(hidden, 1 - images, images)
    assert torch.equal(model.fill_in(images, shown), model.fill_in(other, shown))
    assert not torch.equal(model.fill_in(images, shown), model.fill_in(1 - images, shown))


def test_the_loss_of_one_batch_falls() -> None:
    model, (images, masks) = tiny(), slices()
    draws = model.draw(3, (48, 40), generator())
    optimiser, losses = torch.optim.Adam(model.parameters(), lr=3e-3), []
    for _ in range(20):
        optimiser.zero_grad()
        loss = model.loss(images, masks, draws)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(weight.grad is not None for weight in model.parameters())


def test_every_cell_is_the_mean_of_what_is_filled_in() -> None:
    """The model is replaced by one that paints how many cells it was shown, and 0 in these."""
    model, (images, _) = tiny(), slices(size=(48, 48))
    calls = []

    def fill_in(clean: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
        calls.append(shown)
        return torch.full_like(clean, float(len(calls)))

    model.fill_in = fill_in
    restored = model.reconstruct(images, generator())
    assert torch.equal(torch.stack(calls).sum(0), torch.ones(3, 3, 3))
    for call, shown in enumerate(calls, start=1):
        filled = (6 - call) / 2  # by the two other calls
        pixels = shown.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, None]
        torch.testing.assert_close(2 * restored[pixels] - 1, torch.full((int(pixels.sum()),), filled))


def test_reconstructions_are_drawn_and_repeatable() -> None:
    model, (images, _) = tiny().eval(), slices(20, (33, 20))
    restored = model.reconstruct(images, generator())
    assert restored.shape == images.shape
    assert restored.isfinite().all()
    assert torch.equal(restored, model.reconstruct(images, generator()))
    assert not torch.equal(restored, model.reconstruct(images, generator(1)))
    assert model.reconstruct(images[:, :, :9, :9], None).shape == (20, 1, 9, 9)  # one cell


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"mask_ratio": 1.0}, "mask_ratio"),
        ({"mask_ratio": 0.0}, "mask_ratio"),
        ({"decoder_width": 24}, "decoder_width"),
        ({"encoder": "resnet18"}, "encoder"),
    ],
)
def test_unusable_settings_are_named(changes: dict[str, Any], name: str) -> None:
    with pytest.raises(InputError, match=rf"model\.cfg\.{name}"):
        tiny(**changes)
