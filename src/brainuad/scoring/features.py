"""What a network that was trained on photographs sees of slices, and how far two volumes are apart in it.

Such features tell textures, edges and shapes apart and care little for a shift of brightness. Distances between them
follow what people call similar (Zhang et al. 2018, "The unreasonable effectiveness of deep features"), and find tumours
on T1 that differ from the brain in structure more than in intensity.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load
from torch import Tensor

from brainuad.registry import SCORES
from brainuad.scoring._arrays import as_volume, keep_inside

WEIGHTS = "features.safetensors"
SLICES = 32  # in a network call


@SCORES.register("features")
def features(image: Any, reconstructions: Any, mask: Any) -> Tensor:
    """Return the distance of a scan from the mean of its reconstructions in the features of a network for photographs.

    Args:
        image: Volume (X, Y, Z), the brain in [0, 1].
        reconstructions: Volumes (S, X, Y, Z) on the same scale.
        mask: Brain mask (X, Y, Z).

    Returns:
        (X, Y, Z) in [0, 2], 0 outside the mask.

    Raises:
        ValueError: The shapes do not fit together.
    """
    mean = as_volume(reconstructions, "reconstructions", 4).mean(0).clamp(0, 1)
    pair = (keep_inside(as_volume(volume, "image"), mask) for volume in (image, mean))
    return keep_inside(feature_distance(*pair), mask)


@cache
def _weights(device: torch.device) -> dict[str, Tensor]:
    """Return the weights of the features as float32."""
    stored = load((files("brainuad.assets") / WEIGHTS).read_bytes())
    return {name: value.to(device, torch.float32) for name, value in stored.items()}


def feature_maps(slices: Tensor) -> list[Tensor]:
    """Return the features of slices after three blocks of a network: finer ones first.

    The network is EfficientNet-Lite0 (Tan & Le 2019) with weights learnt on ImageNet. Its batch norms are part of the
    convolutions.

    Args:
        slices: (B, X, Y) in about [0, 1].

    Returns:
        (B, 24, X / 4, Y / 4) twice and (B, 40, X / 8, Y / 8), rounded up.
    """
    weights = _weights(slices.device)

    def convolve(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = weights[f"{name}.weight"]
        size, groups = weight.shape[-1], x.shape[1] // weight.shape[1]
        # as TensorFlow pads, with which it was trained: the odd pixel goes behind
        padding = [max(size - (length % stride or stride), 0) for length in (x.shape[3], x.shape[2])]
        x = F.pad(x, [side for total in padding for side in (total // 2, total - total // 2)])
        return F.conv2d(x, weight, weights[f"{name}.bias"], stride, groups=groups)

    def block(x: Tensor, number: int, stride: int = 1) -> Tensor:
        name = f"blocks.{number}"
        hidden = F.relu6(convolve(x, f"{name}.expand")) if number else x
        hidden = F.relu6(convolve(hidden, f"{name}.depthwise", stride))
        hidden = convolve(hidden, f"{name}.project")
        return hidden + x if hidden.shape == x.shape else hidden

    colours = (2 * slices[:, None] - 1).expand(-1, 3, -1, -1)
    first = block(block(F.relu6(convolve(colours, "stem", 2)), 0), 1, 2)
    second = block(first, 2)
    return [first, second, block(second, 3, 2)]


def feature_distance(first: Any, second: Any) -> Tensor:
    """Return how far two volumes are apart in the features of their axial slices.

    Args:
        first: (X, Y, Z) in about [0, 1].
        second: As ``first``.

    Returns:
        (X, Y, Z) float32 in [0, 2]: one minus the cosine between the features, the mean over three blocks, each brought
        to the resolution of the slice. The blocks see 11, 19 and 35 voxels across.

    Raises:
        ValueError: The volumes are not (X, Y, Z), or of unlike shapes.
    """
    pair = as_volume(first, "first volume"), as_volume(second, "second volume")
    if pair[0].shape != pair[1].shape:
        raise ValueError(f"volumes have the shapes {tuple(pair[0].shape)} and {tuple(pair[1].shape)}")
    slices = [volume.float().permute(2, 0, 1).split(SLICES) for volume in pair]
    with torch.inference_mode():
        parts = [_distance(*batch) for batch in zip(*slices, strict=True)]
    return torch.cat(parts).permute(1, 2, 0)


def _distance(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean distance of slices (B, X, Y) over the blocks."""
    size = (first.shape[1], first.shape[2])
    total = torch.zeros_like(first)
    features = zip(feature_maps(first), feature_maps(second), strict=True)
    for number, (one, other) in enumerate(features, start=1):
        distance = 1 - F.cosine_similarity(one, other, dim=1)
        wide = F.interpolate(distance[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
        total += (wide - total) / number
    return total
