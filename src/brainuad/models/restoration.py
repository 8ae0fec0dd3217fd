"""Restoration of synthetic anomalies: a network learns to mark what was painted into a healthy slab, and to undo it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from brainuad.config import TEST_TIME
from brainuad.errors import InputError
from brainuad.models.anomalies import FAMILIES, NUMBERS, SLOTS, paint
from brainuad.models.base import Draws, Inference, Model
from brainuad.models.contrast import CONTRAST_NUMBERS, noise_bank, random_contrast
from brainuad.models.unet import UNet, UNetSettings
from brainuad.registry import MODELS

POSE_NUMBERS = 6
LARGEST_ANGLE, LARGEST_SCALE, LARGEST_SHIFT = 0.14, 0.08, 3.0  # radians, share, pixels
RESTORATION_WEIGHT = 2.0  # of the error of the restored slice beside that of the marks
SMOOTH_OVERLAP = 20.0  # pixels that keep the overlap of small anomalies from jumping
VISIBLE = 0.04  # change, over 3 x 3 pixels, below which nobody could mark anything


@dataclass
class RestorationSettings(UNetSettings):
    """1.3 million weights at half the resolution inside.

    Attributes:
        neighbours: Axial slices on each side that the model sees.
        inverted: Share of its training slabs in which dark tissue may become bright.
        families: Of its synthetic anomalies; all by default.
        mirrored: Average with what it makes of the mirror image.
    """

    name: str = "restoration"
    unet_dim: int = 32
    num_res_blocks: int = 1
    unshuffle: int = 2
    neighbours: int = 2
    inverted: float = 0.0
    families: tuple[str, ...] = ()
    mirrored: bool = field(default=True, metadata=TEST_TIME)


@MODELS.register("restoration", settings=RestorationSettings)
class RestorationModel(Model):
    """Sees five axial slices; returns the middle one as it would look healthy, and where it does not.

    It is trained on healthy scans alone. Half of what it learns is that of DISYRE (Naval Marimont et al. 2024), the
    healthy slice behind an anomaly; the other half is a map of the anomaly itself. DISYRE's severity, the size of the
    change, is not given to the network: in training it tells whether there is an anomaly at all, which nobody knows of
    a scan.

    Attributes:
        bank: Fixed noise that anomalies are made of.
    """

    bank: Tensor

    def __init__(self, config: RestorationSettings) -> None:
        super().__init__()
        if config.neighbours < 0:
            raise InputError("model.cfg.neighbours", f"{config.neighbours} is negative", "Give 0 or more")
        if not 0 <= config.inverted <= 1:
            raise InputError("model.cfg.inverted", f"{config.inverted} is no share", "Give 0 to 1")
        for name in config.families:
            if name not in FAMILIES:
                raise InputError("model.cfg.families", f"unknown family {name!r}", f"Known: {', '.join(FAMILIES)}")
        self.config = config
        self.neighbours = config.neighbours
        self.families = tuple(config.families) or tuple(FAMILIES)
        self.unet = UNet(config, inputs=2 * self.neighbours + 1, outputs=2)
        self.register_buffer("bank", noise_bank(), persistent=False)

    def draw(self, count: int, size: tuple[int, int], generator: torch.Generator, *, progress: float = 0.0) -> Draws:
        """Draw what anomalies, contrast and pose are made from: uniform numbers in [0, 1)."""
        numbers = {"anomalies": SLOTS * NUMBERS, "contrast": CONTRAST_NUMBERS, "pose": POSE_NUMBERS}
        return {name: torch.rand(count, length, generator=generator) for name, length in numbers.items()}

    def training_pair(self, images: Tensor, masks: Tensor, draws: Draws) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Make what the network is shown, and what it should find, from healthy slabs (B, S, X, Y).

        Returns:
            The slabs with anomalies, of random contrast; and of the middle slices, (B, X, Y) each, how they are without
            anomalies, of the same contrast; the brain; and where they were changed and the change can be seen.
        """
        images, masks = posed(images, masks, draws["pose"])
        numbers = draws["anomalies"].unflatten(1, (SLOTS, NUMBERS))
        painted, lesion = paint(images, masks, numbers, self.bank, self.families)
        painted, clean = random_contrast([painted, images], masks, draws["contrast"], self.bank, self.config.inverted)
        middle = self.neighbours
        # a contrast can hide what was painted
        change = F.avg_pool2d((painted[:, middle] - clean[:, middle]).abs(), 3, stride=1, padding=1)
        return painted, clean[:, middle], masks[:, middle], lesion & (change > VISIBLE)

    def predict(self, slabs: Tensor) -> tuple[Tensor, Tensor]:
        """Return restored middle slices of slabs (B, S, X, Y), and the logits of their anomalies, (B, X, Y) each."""
        no_noise = torch.zeros(len(slabs), dtype=torch.long, device=slabs.device)
        output = self.unet(slabs, no_noise).float()
        return slabs[:, self.neighbours] + output[:, 0], output[:, 1]

    def loss(self, images: Tensor, masks: Tensor, draws: Draws) -> Tensor:
        """Return cross-entropy and Dice loss of the marks, and the absolute error of the restored slice."""
        painted, clean, inside, changed = self.training_pair(images, masks, draws)
        restored, logits = self.predict(painted)
        brain, lesion = inside.float(), changed.float()
        pixels = brain.sum().clamp(min=1)
        entropy = (F.binary_cross_entropy_with_logits(logits, lesion, reduction="none") * brain).sum() / pixels
        marks = torch.sigmoid(logits) * brain
        both = (marks * lesion).sum((1, 2))
        overlap = (2 * both + SMOOTH_OVERLAP) / (marks.sum((1, 2)) + lesion.sum((1, 2)) + SMOOTH_OVERLAP)
        error = ((restored - clean).abs() * brain).sum() / pixels
        return entropy + 0.5 * (1 - overlap).mean() + RESTORATION_WEIGHT * error

    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return restored middle slices, and the probability of an anomaly at each pixel, (B, 1, X, Y) each.

        With ``mirrored`` they are means with those of the mirror image.
        """
        views = (False, True) if self.config.mirrored else (False,)
        restored, marks = torch.zeros_like(images[:, :1]), torch.zeros_like(images[:, :1])
        for mirrored in views:
            slices, logits = self.predict(images.flip(2) if mirrored else images)
            found = torch.stack([slices, torch.sigmoid(logits)])
            found = found.flip(2) if mirrored else found
            restored += found[0, :, None] / len(views)
            marks += found[1, :, None] / len(views)
        return restored, marks

    def reconstruct(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return the middle slices as they would look healthy: (B, 1, X, Y) for slabs (B, S, X, Y)."""
        return self.both(images)[0]

    def maps(self, images: Tensor, masks: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return the probability of an anomaly at each pixel of the middle slices: (B, 1, X, Y)."""
        return self.both(images)[1]

    def infer(self, images: Tensor, masks: Tensor, generator: torch.Generator | None) -> Inference:
        """Return both, which the same network calls give."""
        return Inference(*self.both(images))


def posed(images: Tensor, masks: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Mirror half of the slabs, and turn, scale and move each a little in its plane.

    Args:
        images: (B, S, X, Y).
        masks: (B, S, X, Y) bool.
        uniform: (B, 4 or more) numbers in [0, 1).

    Returns:
        Images, 0 outside the masks, and masks.
    """
    width, height = images.shape[2:]
    signed = 2 * uniform - 1
    angle, scale = LARGEST_ANGLE * signed[:, 1], 1 + LARGEST_SCALE * signed[:, 2]
    mirror = torch.where(signed[:, 0] < 0, -1.0, 1.0)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    along, across = (LARGEST_SHIFT * 2 * signed[:, n] / length for n, length in ((3, width), (4, height)))
    # affine_grid's first coordinate runs along the last axis
    rows = [cos, sin * width / height * mirror, across, -sin * height / width, cos * mirror, along]
    theta = torch.stack(rows, dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    inside = F.grid_sample(masks.to(images.dtype), grid, align_corners=False) > 0.5
    return F.grid_sample(images, grid, align_corners=False) * inside, inside
