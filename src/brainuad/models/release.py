"""Weights of the published release: import of its checkpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from brainuad.errors import InputError
from brainuad.models.diffusion import DiffusionSettings
from brainuad.models.unet import UNet, build_unet

ONLY_DDPM = "Only checkpoints of the release's plain DDPM can be imported"
COMPLETE = "Give a complete checkpoint of the release's plain DDPM"


def load_reference_state_dict(state_dict: Mapping[str, Tensor]) -> UNet:
    """Build the network that a checkpoint of the published release holds, with its weights.

    Width, multipliers and the number of residual blocks follow from the keys and shapes. The attention's head
    width does not; it is taken to be the published 64. Scalars and vectors outside the network (constants of
    the noise schedule) are passed over.

    Args:
        state_dict: The checkpoint's ``state_dict``; keys may carry any prefix before ``time_embed.``.

    Returns:
        The network; its ``config`` holds the inferred settings.

    Raises:
        InputError: A key is missing, is not this network's, or has another shape; the message names it.
    """
    weights = _strip_prefix(state_dict)
    unet = build_unet(_infer_config(weights))
    parameters = unet.net.state_dict()
    keys = {name: _release_key(name, unet.config.num_res_blocks) for name in parameters}
    for key in sorted(weights.keys() - set(keys.values())):
        raise InputError(key, "unknown key in the checkpoint", ONLY_DDPM)
    for key in sorted(set(keys.values()) - weights.keys()):
        raise InputError(key, "missing from the checkpoint", COMPLETE)
    for name, tensor in parameters.items():
        tensor.copy_(_fetch(weights, keys[name], name, tensor.shape, unet.config.attention_head_dim))
    return unet


def _strip_prefix(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the network's own weights under their names within the network."""
    anchor = "time_embed.0.weight"
    prefixes = [key.removesuffix(anchor) for key in state_dict if key.endswith(anchor)]
    if len(prefixes) != 1:
        found = "no" if not prefixes else f"{len(prefixes)}"
        raise InputError(anchor, f"the checkpoint holds {found} keys of that name", ONLY_DDPM)
    for key, value in state_dict.items():
        if not key.startswith(prefixes[0]) and value.ndim > 1:
            raise InputError(key, "unknown key in the checkpoint", ONLY_DDPM)
    inside = (item for item in state_dict.items() if item[0].startswith(prefixes[0]))
    return {key.removeprefix(prefixes[0]): value for key, value in inside}


def _infer_config(weights: Mapping[str, Tensor]) -> DiffusionSettings:
    """Read the network's settings off its keys and shapes."""

    def need(key: str) -> Tensor:
        if key not in weights:
            raise InputError(key, "missing from the checkpoint", COMPLETE)
        return weights[key]

    # Every level but the last ends in an upsampling block, the second module of its output block.
    upsampler = re.compile(r"output_blocks\.\d+\.1\.in_layers\.0\.weight")
    upsamplers = sum(upsampler.fullmatch(key) is not None for key in weights)
    outputs = {key.split(".")[1] for key in weights if key.startswith("output_blocks.")}
    levels, blocks = upsamplers + 1, len(outputs) // (upsamplers + 1) - 1
    if blocks < 1:
        raise InputError("output_blocks", f"{len(outputs)} blocks in {levels} levels", COMPLETE)
    width = need("input_blocks.0.0.weight").shape[0]
    first = [1 + level * (blocks + 1) for level in range(levels)]
    channels = [need(f"input_blocks.{i}.0.in_layers.2.weight").shape[0] for i in first]
    return DiffusionSettings(unet_dim=width, dim_mults=tuple(c // width for c in channels), num_res_blocks=blocks)


# The release's names of our layers
RESIDUAL_BLOCK = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
SINGLE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.attentions.0.group_norm": "middle_block.1.norm",
    "mid_block.attentions.0.to_q": "middle_block.1.qkv",
    "mid_block.attentions.0.to_k": "middle_block.1.qkv",
    "mid_block.attentions.0.to_v": "middle_block.1.qkv",
    "mid_block.attentions.0.to_out.0": "middle_block.1.proj_out",
}
RESIDUAL_NAME = re.compile(r"(down|mid|up)_blocks?\.(?:(\d+)\.)?(resnets|downsamplers|upsamplers)\.(\d+)\.(\w+)")


def _release_key(name: str, blocks: int) -> str:
    """Return the release's key for our name of a parameter; ``blocks`` residual blocks a level."""
    module, _, kind = name.rpartition(".")
    if module in SINGLE:
        return f"{SINGLE[module]}.{kind}"
    match = RESIDUAL_NAME.fullmatch(module)
    if match is None:
        raise ValueError(f"the parameter {name!r} has no counterpart in the release")
    part, level, role, index, layer = match.groups()
    if part == "mid":
        block = f"middle_block.{2 * int(index)}"  # the attention is number 1
    else:
        number = int(level) * (blocks + 1) + (int(index) if role == "resnets" else blocks)
        if part == "down":
            block = f"input_blocks.{1 + number}.0"  # number 0 is the first convolution
        else:
            block = f"output_blocks.{number}.{int(role == 'upsamplers')}"
    return f"{block}.{RESIDUAL_BLOCK[layer]}.{kind}"


def _fetch(weights: Mapping[str, Tensor], key: str, name: str, shape: torch.Size, head_dim: int) -> Tensor:
    """Return the weights under the release's ``key`` in the shape of our ``name``."""
    value = weights[key]
    if key.startswith("middle_block.1.") and value.ndim == 3 and value.shape[2] == 1:
        value = value[:, :, 0]  # a convolution of width 1 there, a linear layer here
    joint = ".qkv." in key
    expected = (shape[0] * 3, *shape[1:]) if joint else tuple(shape)
    if value.shape != expected:
        raise InputError(key, f"shape {tuple(value.shape)}, expected {expected}", ONLY_DDPM)
    if not joint:
        return value
    # Rows hold, head after head, that head's queries, keys and values.
    width = min(head_dim, shape[0])
    heads = value.reshape(shape[0] // width, 3, width, *shape[1:])
    which = ("to_q", "to_k", "to_v").index(name.split(".")[-2])
    return heads[:, which].reshape(shape)
