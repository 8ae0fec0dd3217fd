"""The denoising U-Net of the guided-diffusion family (Dhariwal & Nichol 2021), and import of released weights."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch.nn.functional as F
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from brainuad.config import ModelConfig
from brainuad.errors import InputError


class UNet(nn.Module):
    """Predicts a clean slice from a noisy one and its noise level.

    Residual blocks with scale-shift time embedding, residual up- and downsampling, self-attention at the bottleneck
    only. Every branch that ends in a sum, and the output, starts at zero, so a new network returns zeros.

    Slices whose sides the network's total reduction does not divide are padded inside by repeating the last row and
    column, and the result is cropped: any shape works.

    Args:
        config: ``unet_dim``, ``dim_mults``, ``num_res_blocks``, ``attention_head_dim`` and ``unshuffle`` are used.

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

    Width, multipliers and the number of residual blocks follow from the keys and shapes. The attention's head width
    does not; it is taken to be the published 64. Scalars and vectors outside the network (constants of the noise
    schedule) are passed over.

    Args:
        state_dict: The checkpoint's ``state_dict``; keys may carry any prefix before ``time_embed.``.

    Returns:
        The network; its ``config`` holds the inferred settings.

    Raises:
        InputError: A key is missing, is not one of this network's, or has another shape; the message names it.
    """
    weights = _strip_prefix(state_dict)
    config = _infer_config(weights)
    unet = build_unet(config)
    expected = unet.net.state_dict()
    remapped: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for key, value in weights.items():
        for name, tensor in _remap(key, value, config):
            if name not in expected:
                raise InputError(key, "unknown key in the checkpoint", "Only plain DDPM checkpoints can be imported")
            remapped[name], origin[name] = tensor, key
    for name, tensor in expected.items():
        if name not in remapped:
            raise InputError(name, "the checkpoint has no weights for it", "Give a complete DDPM checkpoint")
        if remapped[name].shape != tensor.shape:
            fault = f"shape {tuple(remapped[name].shape)}, expected {tuple(tensor.shape)}"
            raise InputError(origin[name], fault, "Only plain DDPM checkpoints can be imported")
    unet.net.load_state_dict(remapped)
    return unet


def _check(config: ModelConfig) -> None:
    for name in ("unet_dim", "num_res_blocks", "attention_head_dim", "unshuffle"):
        if getattr(config, name) < 1:
            raise InputError(f"model.cfg.{name}", f"{getattr(config, name)} is not positive", "Give 1 or more")
    if not config.dim_mults or min(config.dim_mults) < 1:
        raise InputError("model.cfg.dim_mults", f"{config.dim_mults}", "Give a positive multiplier for each level")


def _zero_output_convolutions(net: nn.Module) -> None:
    """Start every residual branch and the output at zero, as guided-diffusion does and diffusers does not."""
    for module in net.modules():
        if isinstance(module, ResnetBlock2D):
            outputs: nn.Module = module.conv2
        elif isinstance(module, Attention):
            outputs = module.to_out[0]
        elif isinstance(module, UNet2DModel):
            outputs = module.conv_out
        else:
            continue
        for parameter in outputs.parameters():
            nn.init.zeros_(parameter)


def _strip_prefix(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the network's own weights under their names within the network."""
    anchor = "time_embed.0.weight"
    prefixes = [key.removesuffix(anchor) for key in state_dict if key.endswith(anchor)]
    if len(prefixes) != 1:
        found = "no" if not prefixes else f"{len(prefixes)}"
        raise InputError(anchor, f"the checkpoint holds {found} keys of that name", "Give a DDPM checkpoint")
    for key, value in state_dict.items():
        if not key.startswith(prefixes[0]) and value.ndim > 1:
            raise InputError(key, "unknown key in the checkpoint", "Only plain DDPM checkpoints can be imported")
    return {key.removeprefix(prefixes[0]): value for key, value in state_dict.items() if key.startswith(prefixes[0])}


def _infer_config(weights: Mapping[str, Tensor]) -> ModelConfig:
    """Read the network's settings off its keys and shapes."""

    def need(key: str) -> Tensor:
        if key not in weights:
            raise InputError(key, "missing from the checkpoint", "Give a complete DDPM checkpoint")
        return weights[key]

    # Every level but the last ends in an upsampling block, the second module of its output block.
    upsamplers = sum(bool(re.fullmatch(r"output_blocks\.\d+\.1\.in_layers\.0\.weight", key)) for key in weights)
    outputs = {key.split(".")[1] for key in weights if key.startswith("output_blocks.")}
    levels, blocks = upsamplers + 1, len(outputs) // (upsamplers + 1) - 1
    if blocks < 1:
        raise InputError("output_blocks", f"{len(outputs)} blocks in {levels} levels", "Give a complete checkpoint")
    width = need("input_blocks.0.0.weight").shape[0]
    first = [1 + level * (blocks + 1) for level in range(levels)]
    channels = [need(f"input_blocks.{i}.0.in_layers.2.weight").shape[0] for i in first]
    return ModelConfig(unet_dim=width, dim_mults=tuple(c // width for c in channels), num_res_blocks=blocks)


RESIDUAL_BLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
    "middle_block.1.norm": "mid_block.attentions.0.group_norm",
}
ATTENTION = "mid_block.attentions.0"


def _remap(key: str, value: Tensor, config: ModelConfig) -> list[tuple[str, Tensor]]:
    """Return diffusers' names and tensors for one of guided-diffusion's keys; the key itself where there are none."""
    module, _, kind = key.rpartition(".")
    if module in ENDS:
        return [(f"{ENDS[module]}.{kind}", value)]
    if module == "middle_block.1.proj_out":
        return [(f"{ATTENTION}.to_out.0.{kind}", value.flatten(1) if kind == "weight" else value)]
    if module == "middle_block.1.qkv":
        # One 1x1 convolution holds, head after head, that head's queries, keys and values.
        channels = value.shape[0] // 3
        head_dim = min(config.attention_head_dim, channels)
        heads = value.reshape(channels // head_dim, 3, head_dim, -1)
        query, key_, value_ = (heads[:, i].reshape(channels, -1) for i in range(3))
        parts = {"to_q": query, "to_k": key_, "to_v": value_}
        return [(f"{ATTENTION}.{n}.{kind}", p if kind == "weight" else p[:, 0]) for n, p in parts.items()]
    match = re.fullmatch(r"(input_blocks|middle_block|output_blocks)\.(\d+)\.(?:(\d+)\.)?(\w+(?:\.\d+)?)", module)
    if match and match[4] in RESIDUAL_BLOCK:
        block = _block_name(match[1], int(match[2]), int(match[3] or 0), config.num_res_blocks)
        return [(f"{block}.{RESIDUAL_BLOCK[match[4]]}.{kind}", value)]
    return [(key, value)]


def _block_name(part: str, index: int, position: int, blocks: int) -> str:
    """Return diffusers' name of a residual block that guided-diffusion numbers through."""
    if part == "middle_block":
        return f"mid_block.resnets.{index // 2}"
    if part == "input_blocks":
        level, block = divmod(index - 1, blocks + 1)
        return f"down_blocks.{level}." + (f"resnets.{block}" if block < blocks else "downsamplers.0")
    level, block = divmod(index, blocks + 1)
    return f"up_blocks.{level}." + (f"resnets.{block}" if position == 0 else "upsamplers.0")
