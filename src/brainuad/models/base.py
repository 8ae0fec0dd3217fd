"""What training asks of a model.

A training step has two halves. ``draw`` makes every random number of the step, on the processor. ``loss`` is then a
fixed sequence of tensor operations. So devices that share a batch see what one device would, a resumed run goes on as
an unbroken one, and on CUDA a whole step can be recorded once and replayed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

Draws = dict[str, Tensor]


class Model(nn.Module):
    """A model of healthy brains.

    Attributes:
        neighbours: Axial slices on each side that the model sees besides the one it reconstructs. Slabs have
            S = 2 * neighbours + 1 slices.
    """

    neighbours: int = 0

    def draw(
        self, count: int, size: tuple[int, int], generator: torch.Generator, *, share: float = 0.0
    ) -> Draws:
        """Draw the random numbers of a training step.

        Args:
            count: Slabs of the whole batch, B.
            size: (X, Y) pixels of a slice.
            generator: Source of every number.
            share: How much of the training is done, 0 to 1. Training by the clock passes it on, so that a model may
                narrow what it trains on; a training of so many steps always passes 0.

        Returns:
            Tensors by name. The first axis of each is the slab, so that devices can share them.
        """
        raise NotImplementedError

    def loss(self, images: Tensor, masks: Tensor, draws: Draws) -> Tensor:
        """Return the mean loss of a batch, a scalar.

        Args:
            images: (B, S, X, Y) healthy slabs in about [0, 1].
            masks: (B, S, X, Y) bool brain masks.
            draws: What ``draw`` gave, on the device of ``images``.
        """
        raise NotImplementedError

    def reconstruct(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return how the middle slices would look healthy.

        Args:
            images: (B, S, X, Y) in about [0, 1].
            generator: Source of random numbers.

        Returns:
            (B, 1, X, Y) on the scale of ``images``; values are not clamped.
        """
        raise NotImplementedError
