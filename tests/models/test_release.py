import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from brainuad.errors import InputError
from brainuad.models import build_unet, load_reference_state_dict
from brainuad.models.diffusion import DiffusionSettings
from brainuad.models.release import _release_key

PREFIX = "diffusion.model."


@pytest.fixture
def release(reference):
    """Return the state dict, input, timesteps and output of the release's small network."""
    arrays = reference("unet_small")
    marker = "state_dict/"
    state = {key.removeprefix(marker): torch.from_numpy(arrays[key]) for key in arrays if key.startswith(marker)}
    return state, *(torch.from_numpy(arrays[key]) for key in ("x", "t", "y"))


def test_output_of_the_release(release):
    state, x, t, expected = release
    unet = load_reference_state_dict(state)
    assert (unet.config.unet_dim, unet.config.dim_mults, unet.config.num_res_blocks) == (32, (1, 2, 2), 1)
    with torch.no_grad():
        torch.testing.assert_close(unet(x, t), expected, rtol=0, atol=1e-5)


def test_any_prefix_and_schedule_constants_are_accepted(release):
    state, x, t, expected = release
    bare = {key.removeprefix(PREFIX): value for key, value in state.items()}
    bare["module.time_embed.0.bias"] = bare["time_embed.0.bias"]  # a vector of no use
    with pytest.raises(InputError, match=r"module\.time_embed\.0\.bias"):
        load_reference_state_dict(bare)  # without a prefix every key must be the network's
    other = {"net." + key.removeprefix(PREFIX): value for key, value in state.items()}
    unet = load_reference_state_dict({**other, "betas": torch.zeros(1000), "step": torch.tensor(3)})
    with torch.no_grad():
        torch.testing.assert_close(unet(x, t), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "key",
    [
        "diffusion.model.input_blocks.1.1.qkv.weight",
        "diffusion.model.input_blocks.9.0.in_layers.0.weight",
        "diffusion.model.label_emb.weight",
        "encoder.conv1.weight",
    ],
)
def test_an_unknown_key_is_named(release, key):
    with pytest.raises(InputError, match=key.removeprefix(PREFIX).replace(".", r"\.")):
        load_reference_state_dict({**release[0], key: torch.zeros(3, 3)})


@pytest.mark.parametrize(
    "key",
    [
        "time_embed.0.weight",
        "time_embed.2.bias",
        "input_blocks.0.0.weight",
        "input_blocks.1.0.in_layers.2.weight",
        "input_blocks.2.0.emb_layers.1.bias",
        "middle_block.1.qkv.bias",
        "middle_block.2.out_layers.3.weight",
        "output_blocks.0.0.skip_connection.weight",
        "output_blocks.1.1.in_layers.2.weight",
        "out.2.weight",
    ],
)
def test_a_missing_key_is_named(release, key):
    state = {name: value for name, value in release[0].items() if name != PREFIX + key}
    with pytest.raises(InputError, match=key.replace(".", r"\.")):
        load_reference_state_dict(state)


@pytest.mark.parametrize("key", ["out.2.weight", "middle_block.1.qkv.weight", "input_blocks.3.0.in_layers.0.bias"])
def test_a_wrong_shape_is_named(release, key):
    state = dict(release[0])
    state[PREFIX + key] = torch.cat([state[PREFIX + key]] * 2)
    with pytest.raises(InputError, match=key.replace(".", r"\.") + ": shape"):
        load_reference_state_dict(state)


def test_a_checkpoint_without_a_network_is_refused():
    with pytest.raises(InputError, match=r"time_embed\.0\.weight"):
        load_reference_state_dict({"weight": torch.zeros(2, 2)})
    with pytest.raises(InputError, match="output_blocks"):
        load_reference_state_dict({"time_embed.0.weight": torch.zeros(2, 2)})


def release_state(unet, seed=0):
    """Return random weights under the release's keys and shapes for a network of ``unet``'s settings."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in unet.net.state_dict().items():
        shape = list(tensor.shape)
        key = _release_key(name, unet.config.num_res_blocks)
        if ".qkv." in key:
            shape[0] *= 3
        if key in ("middle_block.1.qkv.weight", "middle_block.1.proj_out.weight"):
            shape.append(1)
        state[key] = 0.1 * torch.randn(shape, generator=generator)
    return state


def legacy_attention(x, state, heads):
    """Return the attention block of guided-diffusion, written out head by head; x is (B, C, X, Y)."""
    batch, channels, *size = x.shape
    flat = x.flatten(2)
    weights = {key.removeprefix("middle_block.1."): value for key, value in state.items()}
    normed = torch.nn.functional.group_norm(flat, 32, weights["norm.weight"], weights["norm.bias"])
    qkv = torch.nn.functional.conv1d(normed, weights["qkv.weight"], weights["qkv.bias"])
    outputs = []
    for head in qkv.chunk(heads, dim=1):
        query, key, value = head.chunk(3, dim=1)
        scores = torch.einsum("bcq,bck->bqk", query, key) / math.sqrt(channels // heads)
        outputs.append(torch.einsum("bqk,bck->bcq", scores.softmax(dim=-1), value))
    mixed = torch.nn.functional.conv1d(torch.cat(outputs, dim=1), weights["proj_out.weight"], weights["proj_out.bias"])
    return (flat + mixed).reshape(batch, channels, *size)


def test_import_separates_attention_heads():
    state = release_state(build_unet(DiffusionSettings(unet_dim=64, dim_mults=(1, 2), num_res_blocks=1)))
    unet = load_reference_state_dict(state)
    x = torch.randn(2, 128, 5, 6, generator=torch.Generator().manual_seed(1))
    attention = unet.net.mid_block.attentions[0]
    assert attention.heads == 2
    with torch.no_grad():
        torch.testing.assert_close(attention(x), legacy_attention(x, state, heads=2), rtol=1e-4, atol=1e-5)


@settings(max_examples=6, deadline=None)
@given(multipliers=st.lists(st.integers(1, 3), min_size=1, max_size=4), blocks=st.integers(1, 3))
def test_import_recovers_the_settings(multipliers, blocks):
    config = DiffusionSettings(unet_dim=8, dim_mults=(1, *multipliers), num_res_blocks=blocks)
    imported = load_reference_state_dict(release_state(build_unet(config)))
    assert imported.config == config
