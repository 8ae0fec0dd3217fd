import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from brainuad.errors import InputError
from brainuad.models import build_unet
from brainuad.models.diffusion import DiffusionSettings
from brainuad.models.layers import Attention
from brainuad.models.unet import Network


def test_paper_network_has_the_published_parameter_count():
    with torch.device("meta"):
        unet = build_unet(DiffusionSettings())
    assert sum(parameter.numel() for parameter in unet.parameters()) == 37_513_857


def test_paper_network_attends_at_the_bottleneck_only_and_normalises_there():
    with torch.device("meta"):
        unet = build_unet(DiffusionSettings())
    attentions = [module for module in unet.modules() if isinstance(module, Attention)]
    assert len(attentions) == 1
    assert attentions[0].heads == 4
    assert attentions[0].group_norm.num_groups == 32
    groups = {module.num_groups for module in unet.modules() if isinstance(module, torch.nn.GroupNorm)}
    assert groups == {32}


@settings(max_examples=10, deadline=None)
@given(
    width=st.integers(1, 3).map(lambda number: 4 * number),
    multipliers=st.lists(st.integers(1, 3), max_size=2),
    blocks=st.integers(1, 3),
    head_dim=st.integers(1, 20),
    unshuffle=st.integers(1, 2),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    data=st.data(),
)
def test_it_is_the_network_of_diffusers(width, multipliers, blocks, head_dim, unshuffle, dtype, data, randomise):
    """Names, the weights that a seed gives, outputs to the bit, and gradients."""
    from diffusers.models.unets.unet_2d import UNet2DModel

    channels = tuple(width * multiplier for multiplier in (1, *multipliers))
    groups = math.gcd(32, *channels)
    torch.manual_seed(width)
    theirs = UNet2DModel(
        in_channels=unshuffle**2,
        out_channels=unshuffle**2,
        block_out_channels=channels,
        layers_per_block=blocks,
        down_block_types=("ResnetDownsampleBlock2D",) * len(channels),
        up_block_types=("ResnetUpsampleBlock2D",) * len(channels),
        resnet_time_scale_shift="scale_shift",
        attention_head_dim=min(head_dim, channels[-1]),
        norm_num_groups=groups,
        attn_norm_num_groups=groups,
    ).eval()
    torch.manual_seed(width)
    ours = Network(unshuffle**2, unshuffle**2, channels, blocks, head_dim)
    weights = theirs.state_dict()
    assert list(ours.state_dict()) == list(weights)
    assert all(torch.equal(new, weights[name]) for name, new in ours.state_dict().items() if new.any())

    ours.load_state_dict(randomise(theirs).state_dict())
    reduction = 2 ** len(multipliers)
    x = torch.randn(2, unshuffle**2, *(reduction * data.draw(st.integers(1, 4)) for _ in range(2)))
    t = torch.tensor(data.draw(st.lists(st.integers(0, 999), min_size=2, max_size=2)))
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        found, expected = ours(x, t), theirs(x, t, return_dict=False)[0]
    assert torch.equal(found, expected)
    for output in (found, expected):
        output.float().square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    error = 0.1 if dtype == torch.bfloat16 else 1e-4  # of the largest; sums over blocks in another order
    for name, parameter in ours.named_parameters():
        largest = float(gradients[name].abs().max())
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=0, atol=error * largest + 1e-7)


@pytest.mark.parametrize("unshuffle", [1, 2])
def test_a_new_network_returns_zeros(tiny, unshuffle):
    unet = build_unet(tiny(unshuffle=unshuffle))
    output = unet(torch.randn(2, 1, 16, 24), torch.tensor([0, 999]))
    assert output.shape == (2, 1, 16, 24)
    assert torch.equal(output, torch.zeros_like(output))


def test_a_new_network_can_leave_zero(tiny):
    unet = build_unet(tiny())
    optimiser = torch.optim.SGD(unet.parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        (unet(torch.randn(2, 1, 16, 16), torch.tensor([3, 4])) - 1).abs().mean().backward()
        optimiser.step()
    assert unet(torch.randn(1, 1, 16, 16), torch.tensor([3])).abs().max() > 0


@settings(max_examples=15, deadline=None)
@given(size=st.tuples(st.integers(1, 21), st.integers(1, 21)), unshuffle=st.integers(1, 3))
def test_any_slice_shape_keeps_its_shape(size, unshuffle):
    unet = build_unet(DiffusionSettings(unet_dim=8, num_res_blocks=1, unshuffle=unshuffle))
    assert unet(torch.zeros(1, 1, *size), torch.zeros(1, dtype=torch.long)).shape == (1, 1, *size)


def test_padding_repeats_the_last_row_and_column(tiny, randomise):
    unet = randomise(build_unet(tiny()))
    x = torch.randn(1, 1, 13, 18, generator=torch.Generator().manual_seed(0))
    padded = torch.cat([x, x[:, :, -1:].expand(-1, -1, 3, -1)], dim=2)
    padded = torch.cat([padded, padded[..., -1:].expand(-1, -1, -1, 2)], dim=3)
    t = torch.tensor([100])
    with torch.no_grad():
        torch.testing.assert_close(unet(x, t), unet(padded, t)[..., :13, :18])


@pytest.mark.parametrize(("width", "groups"), [(32, 32), (48, 16), (8, 8), (20, 4)])
def test_narrow_networks_have_as_many_groups_as_divide_them(width, groups):
    unet = build_unet(DiffusionSettings(unet_dim=width, num_res_blocks=1))
    assert {m.num_groups for m in unet.modules() if isinstance(m, torch.nn.GroupNorm)} == {groups}


@pytest.mark.parametrize(
    ("name", "value"),
    [("unet_dim", 0), ("num_res_blocks", 0), ("unshuffle", -1), ("attention_head_dim", 0), ("dim_mults", ())],
)
def test_unusable_settings_are_named(tiny, name, value):
    with pytest.raises(InputError, match=rf"model\.cfg\.{name}"):
        build_unet(tiny(**{name: value}))
