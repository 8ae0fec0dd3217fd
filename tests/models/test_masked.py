"""Layers that see part of a slice, against the same layers on the pixels that are shown."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from brainuad.models.masked import BatchNorm2d, GroupNorm, keep, shown_by_level

SIZE = (12, 7)


@pytest.fixture
def features() -> Tensor:
    return 2 + 3 * torch.randn(3, 8, *SIZE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def shown() -> dict[tuple[int, int], Tensor]:
    cells = torch.rand(3, 3, 2, generator=torch.Generator().manual_seed(1)) > 0.5
    return shown_by_level(cells, SIZE, 4)


def test_levels_are_those_of_a_network_that_halves(shown: dict[tuple[int, int], Tensor]) -> None:
    assert list(shown) == [(12, 7), (6, 4), (3, 2)]
    x = torch.zeros(1, 1, 33, 65)
    for level in shown_by_level(torch.ones(1, 2, 3, dtype=torch.bool), (33, 65), 32):
        assert level == x.shape[2:]
        x = nn.functional.conv2d(x, torch.zeros(1, 1, 3, 3), stride=2, padding=1)
    cells = shown[3, 2]
    for x_place in range(12):
        for y_place in range(7):
            assert torch.equal(shown[12, 7][..., x_place, y_place], cells[..., x_place // 4, y_place // 4])
    assert 0 < cells.mean() < 1


def test_batch_norm_is_that_of_what_is_shown(features: Tensor, shown: dict[tuple[int, int], Tensor]) -> None:
    layer, plain = BatchNorm2d(8), nn.BatchNorm1d(8)
    for each in (layer, plain):
        nn.init.normal_(each.weight, generator=torch.Generator().manual_seed(2))
        nn.init.normal_(each.bias, generator=torch.Generator().manual_seed(3))
    seen = shown[SIZE][:, 0] > 0
    for training in (True, False):
        layer.train(training), plain.train(training)
        found = layer(features, shown)
        expected = plain(features.permute(0, 2, 3, 1)[seen])
        torch.testing.assert_close(found.permute(0, 2, 3, 1)[seen], expected)
        assert not found.permute(0, 2, 3, 1)[~seen].any()
    for name, value in plain.named_buffers():
        torch.testing.assert_close(layer.get_buffer(name), value)


def test_group_norm_is_that_of_what_is_shown(features: Tensor, shown: dict[tuple[int, int], Tensor]) -> None:
    layer = GroupNorm(2, 8)
    nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(2))
    found, seen = layer(features, shown), shown[SIZE][:, 0] > 0
    for mine, theirs, where in zip(found, features, seen, strict=True):
        expected = nn.functional.group_norm(theirs[None, :, where], 2, layer.weight, layer.bias)
        torch.testing.assert_close(mine[None, :, where], expected)
        assert not mine[:, ~where].any()


def test_with_nothing_hidden_they_are_the_plain_layers(features: Tensor) -> None:
    everything = shown_by_level(torch.ones(3, 3, 2, dtype=torch.bool), SIZE, 4)
    for layer in (BatchNorm2d(8), GroupNorm(2, 8)):
        torch.testing.assert_close(layer(features, everything), layer(features))
    assert keep(features, None) is features
