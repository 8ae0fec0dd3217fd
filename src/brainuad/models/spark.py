"""Masked pretraining of an encoder: hidden cells of a slice are filled in from the others (SparK, Tian et al. 2023)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from brainuad.config import ModelSettings
from brainuad.devices import upload
from brainuad.errors import InputError
from brainuad.models.base import Draws, Model, batch_of
from brainuad.models.encoders import build_encoder
from brainuad.models.masked import shown_by_level
from brainuad.models.noise import draw_permutations
from brainuad.registry import MODELS


@dataclass
class SparkSettings(ModelSettings):
    """The encoder, and how it is trained.

    Attributes:
        encoder: "resnet50" or "small", as in model=cddpm.
        mask_ratio: Share of the cells that are hidden.
        decoder_width: Channels of the decoder at the coarsest level; half as many at each finer one.
    """

    name: str = "spark"
    encoder: str = "small"
    mask_ratio: float = 0.65
    decoder_width: int = 512


@MODELS.register("spark", settings=SparkSettings)
class SparkModel(Model):
    """Fills in what is hidden of a slice; what it learns is an encoder for ``model.cfg.pretrained_encoder``.

    A cell is as large as a pixel of the encoder's coarsest level: 32 x 32 pixels of ResNet-50, 16 x 16 of the small
    encoder. The encoder sees the other cells only, as a sparse network would. The decoder begins with the coarsest
    level, doubles the resolution again and again, and adds the encoder's next level, where a learnt vector stands for
    the hidden cells. Its width is that of the cDDPM paper. Unlike SparK's, the loss is of intensities, not normalised
    cell by cell: so the model can reconstruct.

    It reconstructs in the way it was trained. Cells are dealt at random into groups of about ``1 - mask_ratio`` of
    them. Each group in turn is shown, and each cell becomes the mean of what is filled in when it is hidden.

    The publication trains with AdamW, weight decay 0.05 and betas (0.9, 0.95); training here is with Adam.
    """

    whole_volumes = True

    def __init__(self, config: SparkSettings) -> None:
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config.encoder)
        self.stride = self.encoder.stride
        if not 0 < config.mask_ratio < 1:
            fault = f"{config.mask_ratio} is not between 0 and 1"
            raise InputError("model.cfg.mask_ratio", fault, "The published one is 0.65")
        if config.decoder_width < 1 or config.decoder_width % self.stride:
            fault = f"{config.decoder_width} cannot be halved {self.stride.bit_length() - 1} times"
            raise InputError("model.cfg.decoder_width", fault, f"Give a multiple of {self.stride}")
        self.decoder = Decoder(self.encoder.widths, config.decoder_width, self.stride)

    def _cells(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return how many cells a slice (X, Y) has along each axis."""
        return math.ceil(size[0] / self.stride), math.ceil(size[1] / self.stride)

    def draw(self, count: int, size: tuple[int, int], generator: torch.Generator, *, progress: float = 0.0) -> Draws:
        """Draw which cells the encoder sees, "shown", (B, x, y) bool: of each slice as many, neither none nor all.

        Raises:
            InputError: A slice is one cell.
        """
        cells = self._cells(size)
        number = math.prod(cells)
        if number < 2:
            fault = f"slices of {size[0]} x {size[1]} pixels are single cells, of which none can be hidden"
            raise InputError("model.cfg.encoder", fault, f"Train on a grid of more than {self.stride} pixels")
        kept = max(1, min(round((1 - self.config.mask_ratio) * number), number - 1))
        places = draw_permutations(count, generator, number).argsort(dim=1)
        return {"shown": (places < kept).unflatten(1, cells)}

    def loss(self, images: Tensor, masks: Tensor, draws: Draws) -> Tensor:
        """Return the mean squared error of all pixels in hidden cells, in units of the [-1, 1] scale."""
        clean, shown = 2 * images - 1, draws["shown"]
        hidden = self._hidden(shown, images)
        error = (self.fill_in(clean, shown).float() - clean).square() * hidden
        return error.sum() / hidden.sum()

    def fill_in(self, clean: Tensor, shown: Tensor) -> Tensor:
        """Return slices (B, 1, X, Y) in about [-1, 1], made from those of their cells that are ``shown``, (B, x, y)."""
        size = (clean.shape[2], clean.shape[3])
        levels = shown_by_level(shown, size, self.stride)
        pyramid = self.encoder.pyramid(clean * levels[size], levels)
        return self.decoder(pyramid, [levels[x.shape[2], x.shape[3]] for x in pyramid], size)

    def _hidden(self, shown: Tensor, images: Tensor) -> Tensor:
        """Return the pixels of hidden cells, (B, 1, X, Y) float32."""
        size = (images.shape[2], images.shape[3])
        return 1 - shown_by_level(shown, size, self.stride)[size]

    @torch.inference_mode()
    def reconstruct(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return slices (B, 1, X, Y) of which every cell was filled in from others; the generator deals the groups."""
        cells = self._cells((images.shape[2], images.shape[3]))
        groups = max(2, round(1 / (1 - self.config.mask_ratio)))
        places = draw_permutations(len(images), generator, math.prod(cells)).argsort(dim=1)
        dealt = upload(places % groups, images.device)
        size = batch_of(images)
        mean = torch.zeros_like(images)
        for group in range(groups):
            shown = (dealt == group).unflatten(1, cells)
            batches = zip((2 * images - 1).split(size), shown.split(size), strict=True)
            filled = torch.cat([self.fill_in(*batch) for batch in batches])
            mean += filled * self._hidden(shown, images) / (groups - 1)
        return (mean + 1) / 2


class Decoder(nn.Module):
    """Makes slices of an encoder's levels.

    Args:
        widths: Channels of the levels, from the finest.
        width: Channels at the coarsest level.
        stride: Pixels of a slice to one of the coarsest level.
    """

    def __init__(self, widths: tuple[int, ...], width: int, stride: int) -> None:
        super().__init__()
        own = [width >> level for level in range(stride.bit_length())]
        coarse_first = widths[::-1]
        self.unseen = nn.ParameterList(nn.Parameter(0.02 * torch.randn(1, wide, 1, 1)) for wide in coarse_first)
        self.project = nn.ModuleList(
            nn.Conv2d(before, after, 3 if level else 1, padding=1 if level else 0)
            for level, (before, after) in enumerate(zip(coarse_first, own, strict=False))
        )
        self.doublings = nn.ModuleList(Doubling(before, after) for before, after in pairwise(own))
        self.paint = nn.Conv2d(own[-1], 1, 1)

    def forward(self, pyramid: list[Tensor], shown: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Return (B, 1, X, Y).

        Args:
            pyramid: Levels of the encoder, from the finest, 0 where hidden.
            shown: (B, 1, X', Y') of each.
            size: (X, Y).
        """
        coarse_first = list(zip(self.project, self.unseen, pyramid[::-1], shown[::-1], strict=True))
        levels = [project(seen + unseen * (1 - mask)) for project, unseen, seen, mask in coarse_first]
        x = levels[0]
        for number, doubling in enumerate(self.doublings, start=1):
            step = 2 ** (len(self.doublings) - number)
            x = doubling(x)[..., : math.ceil(size[0] / step), : math.ceil(size[1] / step)]
            if number < len(levels):
                x = x + levels[number]
        return self.paint(x)


class Doubling(nn.Sequential):
    """Doubles the resolution by a transposed convolution; then two convolutions."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.ConvTranspose2d(inputs, inputs, 4, stride=2, padding=1),
            nn.Conv2d(inputs, inputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(inputs),
            nn.ReLU6(),
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
