"""The residual network of 50 layers (He et al. 2016), with the stride in the 3 x 3 convolution.

Weights have torchvision's names, so that those of its ``resnet50`` fit, but for the channels that come in.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from brainuad.models.masked import BatchNorm2d, Shown, keep

EXPANSION = 4  # of a block's channels at its end
BLOCKS = (3, 4, 6, 3)  # of the four layers


class Bottleneck(nn.Module):
    """Three convolutions, 1 x 1, 3 x 3 and 1 x 1, added to their input.

    Args:
        inputs: Channels that come in.
        width: Channels of the 3 x 3 convolution; four times as many go out.
        stride: Of the 3 x 3 convolution and of the shortcut.
    """

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        outputs = EXPANSION * width
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, outputs, 1, bias=False), BatchNorm2d(outputs)
        self.downsample: nn.ModuleList | None = None
        if stride != 1 or inputs != outputs:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.downsample = nn.ModuleList([shortcut, BatchNorm2d(outputs)])

    def forward(self, x: Tensor, shown: Shown | None = None) -> Tensor:
        """Return (B, 4 * width, X', Y') for (B, inputs, X, Y)."""
        hidden = F.relu(self.bn1(self.conv1(x), shown))
        hidden = F.relu(self.bn2(self.conv2(hidden), shown))
        hidden = self.bn3(self.conv3(hidden), shown)
        if self.downsample is not None:
            convolution, norm = self.downsample
            x = norm(convolution(x), shown)
        return F.relu(hidden + x)


class ResNet50(nn.Module):
    """An encoder of slices.

    Args:
        outputs: Numbers that the final linear layer gives; 0 for a network without.
        inputs: Channels that come in.

    Attributes:
        head: Name of the final linear layer.
        stride: Pixels of the slice to one of the coarsest level.
        widths: Channels of the levels of ``pyramid``.
    """

    head = "fc"
    stride = 32
    widths = (256, 512, 1024, 2048)

    def __init__(self, outputs: int, inputs: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = BatchNorm2d(64)
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.ModuleList(
                Bottleneck(EXPANSION * width if block else before, width, 1 if block else stride)
                for block in range(blocks)
            )
            for blocks, before, width, stride in zip(
                BLOCKS, (64, *self.widths), (64, 128, 256, 512), (1, 2, 2, 2), strict=False
            )
        )
        self.fc = nn.Linear(self.widths[-1], outputs) if outputs else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def pyramid(self, x: Tensor, shown: Shown | None = None) -> list[Tensor]:
        """Return the features of four levels, from 1/4 of the resolution to 1/32, rounded up.

        Args:
            x: (B, inputs, X, Y).
            shown: What of the slices is to be seen, where it is not all; hidden pixels of ``x`` are 0.
        """
        x = F.relu(self.bn1(self.conv1(x), shown))
        x = keep(F.max_pool2d(x, 3, stride=2, padding=1), shown)
        levels = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in layer:
                x = block(x, shown)
            levels.append(x)
        return levels

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outputs) for (B, inputs, X, Y)."""
        return self.fc(self.pyramid(x)[-1].mean((2, 3)))
