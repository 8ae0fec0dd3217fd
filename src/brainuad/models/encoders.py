"""Encoders of slices, which sum a slice up in a few numbers."""

from __future__ import annotations

from itertools import islice

from torch import Tensor, nn

from brainuad.errors import InputError
from brainuad.models.masked import GroupNorm, Shown
from brainuad.models.resnet import ResNet50


class SmallEncoder(nn.Sequential):
    """Eight convolutions, 1.2 million weights; one of our own.

    Args:
        outputs: Numbers that the final linear layer gives; 0 for a network without.

    Attributes:
        head: Name of the final linear layer.
        stride: Pixels of the slice to one of the coarsest level.
        widths: Channels of the levels of ``pyramid``, each of half the resolution of the one before.
    """

    head = "26"
    stride = 16
    widths = (32, 64, 128, 256)

    def __init__(self, outputs: int) -> None:
        layers: list[nn.Module] = []
        for before, after in zip((1, *self.widths), self.widths, strict=False):
            layers += [
                nn.Conv2d(before, after, 3, stride=2, padding=1),
                GroupNorm(8, after),
                nn.SiLU(),
                nn.Conv2d(after, after, 3, padding=1),
                GroupNorm(8, after),
                nn.SiLU(),
            ]
        if outputs:
            layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(self.widths[-1], outputs)]
        super().__init__(*layers)

    def pyramid(self, x: Tensor, shown: Shown | None = None) -> list[Tensor]:
        """Return the features of four levels, from 1/2 of the resolution to 1/16, rounded up.

        Args:
            x: (B, 1, X, Y).
            shown: What of the slices is to be seen, where it is not all; hidden pixels of ``x`` are 0.
        """
        levels, layers = [], iter(self)
        for _ in self.widths:
            for layer in islice(layers, 6):
                x = layer(x, shown) if isinstance(layer, GroupNorm) else layer(x)
            levels.append(x)
        return levels


Encoder = SmallEncoder | ResNet50
ENCODERS: dict[str, type[Encoder]] = {"small": SmallEncoder, "resnet50": ResNet50}


def build_encoder(name: str, outputs: int = 0) -> Encoder:
    """Return a new encoder from (B, 1, X, Y) to (B, outputs), or with 0 of them one without its final linear layer.

    Raises:
        InputError: There is none of that name.
    """
    if name not in ENCODERS:
        raise InputError("model.cfg.encoder", f"unknown encoder {name!r}", f"Known: {', '.join(ENCODERS)}")
    return ENCODERS[name](outputs)


def load_pretrained(encoder: Encoder, model: nn.Module, source: str) -> None:
    """Give an encoder the weights of another model's ``encoder``, all but those of its final linear layer.

    Args:
        encoder: To change.
        model: The other model.
        source: Where it is from, for messages.

    Raises:
        InputError: The other model has no encoder of this kind.
    """
    own = {name: value for name, value in encoder.state_dict().items() if name.split(".")[0] != encoder.head}
    weights = {name.removeprefix("encoder."): value for name, value in model.state_dict().items()}
    found = {name: value for name, value in weights.items() if name in own}
    if {name: value.shape for name, value in found.items()} != {name: own[name].shape for name in own}:
        remedy = "Give the folder of a model=spark with the same model.cfg.encoder"
        raise InputError(source, f"holds no encoder that fits {type(encoder).__name__}", remedy)
    encoder.load_state_dict(found, strict=False)
