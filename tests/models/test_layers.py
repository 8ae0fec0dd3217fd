import shutil

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from brainuad.models import build_unet
from brainuad.models.layers import GroupNorm, Upsample


@pytest.fixture
def as_compiled(monkeypatch):
    """Take the ways that a compiler is given, without one."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)


@settings(max_examples=30, deadline=None)
@given(
    groups=st.integers(1, 4),
    width=st.integers(1, 4),
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=2),
    offset=st.floats(-20, 20),
    seed=st.integers(0, 2**16),
)
def test_group_norm_for_a_compiler_is_pytorchs(groups, width, shape, offset, seed):
    generator = torch.Generator().manual_seed(seed)
    layer = GroupNorm(groups, groups * width)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    x = torch.randn((3, groups * width, *shape), generator=generator) + offset
    expected = F.group_norm(x, groups, layer.weight, layer.bias, layer.eps)
    assert torch.equal(layer(x), expected)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        found = layer(x)
        assert layer(x.bfloat16()).dtype == torch.bfloat16
    # the squared mean is taken from the mean square, so errors grow with the first
    members = x.double().reshape(3, groups, -1)
    ratio = members.mean(2).square() / (members.var(2, correction=0) + layer.eps)
    scale = layer.weight.abs().max()
    assert (found - expected).abs().max() <= (1e-5 + 2e-6 * ratio.max()) * (1 + scale)


def test_upsampling_for_a_compiler_is_pytorchs(as_compiled):
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    expected = F.interpolate(x, scale_factor=2.0, mode="nearest")
    found = Upsample()(x)
    assert torch.equal(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last)
    weights = torch.randn_like(found)
    (gradient,) = torch.autograd.grad((found * weights).sum(), x)
    (as_expected,) = torch.autograd.grad((expected * weights).sum(), x)
    torch.testing.assert_close(gradient, as_expected)


def test_a_network_computes_the_same_for_a_compiler(tiny, randomise, monkeypatch):
    network = randomise(build_unet(tiny()))
    assert sum(isinstance(module, Upsample) for module in network.modules()) == len(tiny().dim_mults) - 1
    assert all(isinstance(module, GroupNorm) for module in network.modules() if isinstance(module, torch.nn.GroupNorm))
    x, t = torch.randn(2, 1, 16, 16), torch.tensor([3, 700])
    expected = network(x, t)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(network(x, t), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.slow(seconds=10)
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_are_compiled(dtype):
    layers = torch.nn.Sequential(GroupNorm(2, 4), Upsample()).to(dtype)
    x = torch.randn(2, 4, 6, 5).to(dtype)
    found = torch.compile(layers, fullgraph=True)(x)
    assert found.is_contiguous(memory_format=torch.channels_last)  # so it took the compiler's way
    torch.testing.assert_close(found, layers(x))
