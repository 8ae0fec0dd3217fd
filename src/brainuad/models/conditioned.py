"""Conditioned diffusion: the network also gets a description of the clean slice (cDDPM, Behrendt et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

from brainuad.config import FREE
from brainuad.models.base import Model
from brainuad.models.diffusion import DiffusionModel, DiffusionSettings
from brainuad.models.encoders import build_encoder, load_pretrained
from brainuad.registry import MODELS


@dataclass
class ConditionedSettings(DiffusionSettings):
    """Those of a diffusion model, and of the encoder that describes the clean slice.

    Attributes:
        encoder: "resnet50", the paper's, or "small", one of our own with 1.2 million weights.
        pretrained_encoder: Folder of a trained model=spark, whose encoder training starts from; empty means anew.
            The trained model does not need it.
    """

    name: str = "cddpm"
    encoder: str = "small"
    pretrained_encoder: str = field(default="", metadata=FREE)  # what the first half of a run started from


@MODELS.register("cddpm", settings=ConditionedSettings)
class ConditionedDiffusionModel(DiffusionModel):
    """A diffusion model whose network also gets a description of the clean slice.

    An encoder sums the clean slice up in 4 * ``unet_dim`` numbers. They are too few to hold a lesion, and enough to
    hold the contrast and the shape of the head, which noise hides. They pass two linear layers. Then they are joined to
    the equally long embedding of the noise level, and both scale and shift the features of every block. The encoder is
    trained with the network.

    Attributes:
        encoder: From (B, 1, X, Y) in [-1, 1] to (B, 4 * unet_dim).
        project: Two layers that the description passes on its way to the network.
    """

    config: ConditionedSettings

    def __init__(self, config: ConditionedSettings) -> None:
        width = 4 * config.unet_dim
        super().__init__(config, condition=width)
        self.encoder = build_encoder(config.encoder, width)
        self.project = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def start_from(self, load: Callable[[str], Model]) -> None:
        """Take over the encoder of ``config.pretrained_encoder``, all but its final linear layer.

        Raises:
            InputError: It is no model, or one without such an encoder.
        """
        if folder := self.config.pretrained_encoder:
            load_pretrained(self.encoder, load(folder), folder)

    def condition(self, clean: Tensor) -> Tensor:
        """Return the description of clean slices (B, 1, X, Y) in [-1, 1]: (B, 4 * unet_dim)."""
        return self.project(self.encoder(clean))
