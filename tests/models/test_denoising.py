"""The denoising autoencoder: its noise, its loss, its network."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from brainuad.errors import InputError
from brainuad.models.denoising import DenoisingAutoencoder, DenoisingSettings, PlainUNet, spread


def tiny() -> DenoisingAutoencoder:
    torch.manual_seed(1)
    return DenoisingAutoencoder(DenoisingSettings(widths=(4, 8)))


def slices() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    masks = torch.zeros(3, 1, 24, 20, dtype=torch.bool)
    masks[:, :, 3:-3, 3:-3] = True
    return F.avg_pool2d(torch.rand(masks.shape, generator=generator), 5, 1, 2) * masks, masks


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_noise_is_coarse_and_rolled() -> None:
    draws = tiny().draw(3, (24, 20), generator())
    assert draws["coarse_noise"].shape == (3, 1, 16, 16)
    found = spread(draws["coarse_noise"], draws["roll"], (24, 20))
    for number in range(3):
        fine = F.interpolate(draws["coarse_noise"][number, None], (24, 20), mode="bilinear")[0, 0]
        assert torch.equal(found[number, 0], fine.roll(tuple(draws["roll"][number].tolist()), (0, 1)))


def test_noise_has_the_published_deviation() -> None:
    noise = tiny().draw(200, (24, 20), generator())["coarse_noise"]
    assert noise.std().item() == pytest.approx(0.2, rel=0.02)


def test_noise_and_loss_are_in_the_brain() -> None:
    model, (images, masks) = tiny(), slices()
    draws = model.draw(3, (24, 20), generator())
    seen = []
    model.unet.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    loss = model.loss(images, masks, draws)
    changed = seen[0] != images
    assert not changed[~masks].any()
    assert changed[masks].float().mean() > 0.99
    error = (model.unet(seen[0]) - images)[masks]
    torch.testing.assert_close(loss, error.square().mean())


def test_the_loss_of_one_batch_falls() -> None:
    model, (images, masks) = tiny(), slices()
    draws = model.draw(3, (24, 20), generator())
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(25):
        optimiser.zero_grad()
        loss = model.loss(images, masks, draws)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_a_scan_is_reconstructed_without_noise() -> None:
    model, (images, _) = tiny(), slices()
    assert torch.equal(model.reconstruct(images, generator(1)), model.unet(images))


@pytest.mark.parametrize("size", [(24, 20), (17, 31), (5, 3)])
def test_slices_of_any_size(size: tuple[int, int]) -> None:
    assert PlainUNet((4, 8, 8, 8))(torch.rand(2, 1, *size)).shape == (2, 1, *size)


def test_the_published_network_has_the_documented_size() -> None:
    network = PlainUNet(DenoisingSettings().widths)
    assert round(sum(weight.numel() for weight in network.parameters()) / 1e6, 1) == 7.8
    assert network.multiple == 8


def test_unusable_widths_are_named() -> None:
    with pytest.raises(InputError, match=r"model\.cfg\.widths"):
        DenoisingAutoencoder(DenoisingSettings(widths=(8, 0)))
