"""The denoising U-Net of the guided-diffusion family (Dhariwal & Nichol 2021); import of released weights."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn

from brainuad.config import ModelConfig
from brainuad.errors import InputError
from brainuad.models.layers import use_own_layers

ONLY_DDPM = "Only checkpoints of the release's plain DDPM can be imported"
COMPLETE = "Give a complete checkpoint of the release's plain DDPM"


class UNet(nn.Module):
    """Predicts a clean slice from a noisy one and its noise level.

    Residual blocks with scale-shift time embedding, residual up- and downsampling, self-attention at the
    bottleneck only. Every branch that ends in a sum, and the output, starts at zero: a new network returns
    zeros.

    Slices whose sides the network's total reduction does not divide are padded inside by repeating the last row and
    column, and the result is cropped: any shape works.

    Args:
        config: Of its settings ``unet_dim``, ``dim_mults``, ``num_res_blocks``, ``attention_head_dim`` and
            ``unshuffle`` are used.

    Raises:
        InputError: One of these is not positive, or ``dim_mults`` is empty.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        _check(config)
        self.config = config
        channels = tuple(config.unet_dim * multiplier for multiplier in config.dim_mults)
        levels = len(channels)
        groups = math.gcd(32, *channels)  # 32, unless a narrow network cannot be divided so
        self.net = UNet2DModel(
            in_channels=config.unshuffle**2,
            out_channels=config.unshuffle**2,
            block_out_channels=channels,
            layers_per_block=config.num_res_blocks,
            down_block_types=("ResnetDownsampleBlock2D",) * levels,
            up_block_types=("ResnetUpsampleBlock2D",) * levels,
            resnet_time_scale_shift="scale_shift",
            attention_head_dim=min(config.attention_head_dim, channels[-1]),
            norm_num_groups=groups,
            attn_norm_num_groups=groups,  # diffusers drops the attention's norm without it
        )
        self.multiple = config.unshuffle * 2 ** (levels - 1)
        _zero_output_convolutions(self.net)
        use_own_layers(self.net)
        self.train()

    def train(self, mode: bool = True) -> UNet:
        """Set the mode. The network has no layer that trains otherwise than it works, and is never in it.

        In that mode diffusers lays out anew what residual blocks add, to spare distributed training a warning.
        """
        super().train(mode)
        self.net.train(False)
        return self

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the network's output for noisy slices.

        Args:
            x: (B, 1, X, Y), clean slices of range [-1, 1] plus noise.
            t: (B,) int64, 0-based timesteps.

        Returns:
            (B, 1, X, Y).
        """
        height, width = x.shape[-2:]
        pad = (0, -width % self.multiple, 0, -height % self.multiple)
        if any(pad):
            x = F.pad(x, pad, mode="replicate")
        folded = F.pixel_unshuffle(x, self.config.unshuffle)
        output = F.pixel_shuffle(self.net(folded, t, return_dict=False)[0], self.config.unshuffle)
        return output[..., :height, :width]


def build_unet(config: ModelConfig) -> UNet:
    """Return a new network; with the default settings it has the published 37,513,857 parameters.

    Raises:
        InputError: A size in ``config`` is not positive, or ``dim_mults`` is empty.
    """
    return UNet(config)


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


def _check(config: ModelConfig) -> None:
    for name in ("unet_dim", "num_res_blocks", "attention_head_dim", "unshuffle"):
        value = getattr(config, name)
        if value < 1:
            raise InputError(f"model.cfg.{name}", f"{value} is not positive", "Give 1 or more")
    if not config.dim_mults or min(config.dim_mults) < 1:
        fault = f"{tuple(config.dim_mults)} is not a list of positive numbers"
        raise InputError("model.cfg.dim_mults", fault, "Give one multiplier for each level")


def _zero_output_convolutions(net: nn.Module) -> None:
    """Start every residual branch and the output at zero, as guided-diffusion does and diffusers does not."""
    for name, module in net.named_modules():
        if name == "conv_out" or name.endswith((".conv2", ".to_out.0")):
            for parameter in module.parameters():
                nn.init.zeros_(parameter)


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


def _infer_config(weights: Mapping[str, Tensor]) -> ModelConfig:
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
    return ModelConfig(unet_dim=width, dim_mults=tuple(c // width for c in channels), num_res_blocks=blocks)


# The release's names of what diffusers calls otherwise
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
RESIDUAL_NAME = re.compile(
    r"(down|mid|up)_blocks?\.(?:(\d+)\.)?(resnets|downsamplers|upsamplers)\.(\d+)\.(\w+)"
)


def _release_key(name: str, blocks: int) -> str:
    """Return the release's key for diffusers' name of a parameter; ``blocks`` residual blocks a level."""
    module, _, kind = name.rpartition(".")
    if module in SINGLE:
        return f"{SINGLE[module]}.{kind}"
    match = RESIDUAL_NAME.fullmatch(module)
    if match is None:
        raise ValueError(f"diffusers' parameter {name!r} has no counterpart in the release")
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
    """Return the weights under the release's ``key`` in the shape of diffusers' ``name``."""
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
