"""Autoencoders: through a few numbers and back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from brainuad.errors import InputError
from brainuad.models.autoencoder import Autoencoder, AutoencoderSettings, VariationalAutoencoder, VariationalSettings

TINY = {"latent_dim": 5, "widths": (4, 8)}


def plain(**changes: Any) -> Autoencoder:
    torch.manual_seed(1)
    return Autoencoder(AutoencoderSettings(**(TINY | changes)))


def variational(**changes: Any) -> VariationalAutoencoder:
    torch.manual_seed(1)
    return VariationalAutoencoder(VariationalSettings(**(TINY | changes)))


def slices(count: int = 3, size: tuple[int, int] = (24, 20)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.nn.functional.avg_pool2d(torch.rand(count, 1, *size, generator=generator), 5, 1, 2)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("size", [(24, 20), (17, 31), (96, 80)])
@pytest.mark.parametrize("make", [plain, variational])
def test_slices_of_any_size_pass_through_as_many_numbers(make: Any, size: tuple[int, int]) -> None:
    model, images = make(), slices(2, size)
    seen = []
    model.from_code.register_forward_hook(lambda module, given, made: seen.append(given[0].shape))
    assert model.reconstruct(images, None).shape == images.shape
    assert seen == [(2, 5)]


@pytest.mark.parametrize("make", [plain, variational])
def test_the_loss_of_one_batch_falls(make: Any) -> None:
    model, images = make(), slices()
    draws = model.draw(3, (24, 20), generator())
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(25):
        optimiser.zero_grad()
        loss = model.loss(images, images > 0, draws)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_the_loss_is_the_error_of_a_draw_and_the_divergence() -> None:
    model, images = variational(divergence=3.0), slices()
    draws = model.draw(3, (24, 20), generator())
    mean, log_variance = model.encode(images).chunk(2, dim=1)
    code = Normal(mean, (log_variance / 2).exp())
    drawn = model.decode(code.loc + code.scale * draws["code"], (24, 20))
    divergence = kl_divergence(code, Normal(0.0, 1.0)).sum(1).mean() / (24 * 20)
    expected = (drawn - images).abs().mean() + 3 * divergence
    torch.testing.assert_close(model.loss(images, images > 0, draws), expected)
    assert not torch.equal(model.draw(3, (24, 20), generator(1))["code"], draws["code"])


def test_a_new_network_has_the_documented_size() -> None:
    sizes = [
        sum(weight.numel() for weight in model.parameters())
        for model in (Autoencoder(AutoencoderSettings()), VariationalAutoencoder(VariationalSettings()))
    ]
    assert [round(size / 1e6, 1) for size in sizes] == [2.2, 2.8]


@pytest.mark.parametrize(
    ("changes", "name"),
    [({"latent_dim": 0}, "latent_dim"), ({"widths": ()}, "widths"), ({"divergence": -1.0}, "divergence")],
)
def test_unusable_settings_are_named(changes: dict[str, Any], name: str) -> None:
    with pytest.raises(InputError, match=rf"model\.cfg\.{name}"):
        variational(**changes)
