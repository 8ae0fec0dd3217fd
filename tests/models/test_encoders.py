"""Encoders: known facts of ResNet-50, levels, what a hidden cell may change, and weights of another model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from brainuad.errors import InputError
from brainuad.models.encoders import ENCODERS, build_encoder, load_pretrained
from brainuad.models.masked import shown_by_level
from brainuad.models.resnet import BLOCKS, ResNet50


def test_resnet_has_the_weights_of_torchvisions() -> None:
    with torch.device("meta"):
        network = ResNet50(1000, inputs=3)
    assert sum(weight.numel() for weight in network.parameters()) == 25_557_032
    expected = {"conv1.weight", "fc.weight", "fc.bias"}
    norms = ["bn1"]
    for layer, blocks in enumerate(BLOCKS, start=1):
        for block in range(blocks):
            name = f"layer{layer}.{block}"
            expected |= {f"{name}.conv{number}.weight" for number in (1, 2, 3)}
            norms += [f"{name}.bn{number}" for number in (1, 2, 3)]
        expected.add(f"layer{layer}.0.downsample.0.weight")
        norms.append(f"layer{layer}.0.downsample.1")
    kinds = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected |= {f"{norm}.{kind}" for norm in norms for kind in kinds}
    weights = network.state_dict()
    assert set(weights) == expected
    assert weights["layer4.2.conv3.weight"].shape == (2048, 512, 1, 1)
    assert weights["layer2.0.conv2.weight"].shape == (128, 128, 3, 3)


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("size", [(64, 64), (33, 50)])
def test_levels_halve_the_resolution(name: str, size: tuple[int, int]) -> None:
    encoder = build_encoder(name, 5).eval()
    slices = torch.randn(2, 1, *size)
    with torch.no_grad():
        levels = encoder.pyramid(slices)
        assert encoder(slices).shape == (2, 5)
    steps = [encoder.stride // 2**level for level in (3, 2, 1, 0)]
    expected = [
        (2, wide, *(-(-side // step) for side in size)) for wide, step in zip(encoder.widths, steps, strict=True)
    ]
    assert [level.shape for level in levels] == expected


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("training", [True, False])
def test_what_is_hidden_changes_nothing(name: str, training: bool) -> None:
    encoder = build_encoder(name).train(training)
    cells = torch.tensor([[[True, False], [False, True]]])
    size = (2 * encoder.stride, 2 * encoder.stride)
    shown = shown_by_level(cells, size, encoder.stride)
    slices = torch.randn(1, 1, *size)
    other = torch.where(shown[size] > 0, slices, torch.randn(1, 1, *size))
    with torch.no_grad():
        found, changed = ([*encoder.pyramid(x * shown[size], shown)] for x in (slices, other))
    for level, same in zip(found, changed, strict=True):
        assert torch.equal(level, same)
        assert level.abs().sum() > 0
        assert not level[(shown[level.shape[2], level.shape[3]] == 0).expand_as(level)].any()


@pytest.mark.parametrize("name", ENCODERS)
def test_all_but_the_final_layer_is_taken_over(name: str) -> None:
    pretrained, encoder = nn.ModuleDict({"encoder": build_encoder(name)}), build_encoder(name, 3)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    load_pretrained(encoder, pretrained, "folder")
    theirs = pretrained["encoder"].state_dict()
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, theirs.get(key, before[key])), key
    assert before.keys() - theirs.keys() == {f"{encoder.head}.weight", f"{encoder.head}.bias"}


def test_another_encoder_is_refused() -> None:
    small = nn.ModuleDict({"encoder": build_encoder("small")})
    for other in (small, nn.Linear(1, 1)):
        with pytest.raises(InputError, match="folder: holds no encoder that fits ResNet50"):
            load_pretrained(build_encoder("resnet50"), other, "folder")
    with pytest.raises(InputError, match=r"model\.cfg\.encoder: unknown encoder 'vgg'"):
        build_encoder("vgg")
