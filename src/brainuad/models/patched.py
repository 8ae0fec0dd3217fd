"""Patched diffusion: noise in one box of a slice, the network sees the rest (pDDPM, Behrendt et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from brainuad.models.base import Draws, check_positive
from brainuad.models.diffusion import LOSSES, DiffusionModel, DiffusionSettings
from brainuad.registry import MODELS


@dataclass
class PatchedSettings(DiffusionSettings):
    """Those of a diffusion model, and the boxes.

    Attributes:
        patch_size: Edge of a box in pixels.
    """

    name: str = "pddpm"
    patch_size: int = 48


@MODELS.register("pddpm", settings=PatchedSettings)
class PatchedDiffusionModel(DiffusionModel):
    """A diffusion model that restores a slice box by box.

    Boxes stand side by side, from the first pixel on. Where they do not fill a slice the last one is moved inside, and
    is cut where the slice is smaller than a box. What two boxes both cover is taken from the later one.

    In training the network sees a slice of which one random box is noised, and only its error in the box counts. To
    reconstruct a slice each box in turn is noised, all from one noise field, and what the network makes of them is put
    together.
    """

    config: PatchedSettings

    def __init__(self, config: PatchedSettings) -> None:
        check_positive(config, "patch_size")
        super().__init__(config)

    def draw(self, count: int, size: tuple[int, int], generator: torch.Generator, *, progress: float = 0.0) -> Draws:
        """Draw what a diffusion model does, and the first pixel of each slice's box, "corners", (B, 2) int64."""
        drawn = super().draw(count, size, generator, progress=progress)
        corners = box_corners(size, self.config.patch_size).to(generator.device)
        chosen = torch.randint(len(corners), (count,), generator=generator, device=generator.device)
        return drawn | {"corners": corners[chosen]}

    def loss(self, images: Tensor, masks: Tensor, draws: Draws) -> Tensor:
        """Return the mean error of the predicted clean boxes, in units of the [-1, 1] scale.

        Raises:
            ValueError: ``images`` is not (B, 1, X, Y).
        """
        clean, noisy = self.training_pair(images, draws)
        size = (images.shape[2], images.shape[3])
        box = boxes(draws["corners"], size, self.config.patch_size)[:, None]
        predicted = self.denoise(torch.where(box, noisy, clean), draws["timesteps"], None)
        error = LOSSES[self.config.loss](predicted.float(), clean, reduction="none") * box
        return error.sum() / box.sum()

    def predict(self, clean: Tensor, noisy: Tensor, t: Tensor, told: Tensor | None, batch_size: int) -> Tensor:
        """Return the clean slices that the network predicts box by box: (B, 1, X, Y) in [-1, 1]."""
        predicted = clean
        for box in self._boxes(clean):
            made = super().predict(clean, torch.where(box, noisy, clean), t, told, batch_size)
            predicted = torch.where(box, made.to(clean.dtype), predicted)
        return predicted

    def noised(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return what ``reconstruct`` with an equal generator shows the network first: the first box is noised."""
        return torch.where(self._boxes(images)[0], super().noised(images, generator), images)

    def _boxes(self, images: Tensor) -> Tensor:
        """Return the pixels of every box, (N, X, Y) bool."""
        size = (images.shape[2], images.shape[3])
        edge = self.config.patch_size
        return boxes(box_corners(size, edge), size, edge).to(images.device)


def box_corners(size: tuple[int, int], edge: int) -> Tensor:
    """Return the first pixels (x, y) of the boxes that cover a slice of a size (X, Y): (N, 2) int64."""
    along_x, along_y = (torch.tensor([*range(0, length - edge, edge), max(length - edge, 0)]) for length in size)
    return torch.cartesian_prod(along_x, along_y)


def boxes(corners: Tensor, size: tuple[int, int], edge: int) -> Tensor:
    """Return which pixels of slices (X, Y) lie in the boxes of some corners (N, 2): (N, X, Y) bool."""
    along_x, along_y = (
        torch.arange(length, device=corners.device) - corners[:, axis, None] for axis, length in enumerate(size)
    )
    inside_x, inside_y = ((along >= 0) & (along < edge) for along in (along_x, along_y))
    return inside_x[:, :, None] & inside_y[:, None, :]
