"""A whole training step as one fixed sequence of operations, which CUDA replays as a graph.

Launched one by one, the kernels of a small network take a processor longer than the GPU. A graph is launched as a
whole. What differs from step to step, the random numbers, the learning rate and the decay of the average, is copied
into tensors that stay where they are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from brainuad.models.base import Model
from brainuad.train.slices import TrainingVolumes, take_batch

logger = logging.getLogger(__name__)

EAGER_STEPS = 3  # of a batch size before it is recorded: compiler, cuDNN and optimiser get ready in them
RATE, DECAY = "learning rate", "decay"  # what is passed besides what the step draws


class WholeStep:
    """Slices, augments, takes the loss and its gradients, changes the weights and brings their average up to date.

    Args:
        model: What is trained.
        average: Moving average of it; may be the model itself, which then has none.
        optimizer: Takes its learning rate from a tensor.
        volumes: On the model's device.
        precision: Type of the network's products.
        largest_norm: Of the gradients; 0 for any.
    """

    def __init__(
        self,
        model: Model,
        average: Model,
        optimizer: torch.optim.Optimizer,
        volumes: TrainingVolumes,
        *,
        precision: torch.dtype = torch.float32,
        largest_norm: float = 0.0,
    ) -> None:
        self.model, self.average, self.optimizer, self.volumes = model, average, optimizer, volumes
        self.precision, self.largest_norm = precision, largest_norm
        self.device = volumes.images.device
        # PyTorch asks for steps beside the main stream before one is recorded
        self.beside = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self.held: dict[int, dict[str, Tensor]] = {}
        self.losses: dict[int, Tensor] = {}
        self.seen: dict[int, int] = {}
        self.replays: dict[int, Callable[[], None]] = {}

    def __call__(self, drawn: Mapping[str, Tensor], rate: float, decay: float) -> Tensor:
        """Take one step and return its loss, a scalar that nothing has waited for.

        Args:
            drawn: Random numbers of the step, on the CPU: see ``take_batch`` and ``Model.draw``.
            rate: Learning rate.
            decay: Of the moving average.
        """
        size = len(drawn["indices"])
        held = self._hold(size, {**drawn, RATE: torch.tensor(rate), DECAY: torch.tensor(decay)})
        self.seen[size] = self.seen.get(size, 0) + 1
        if size not in self.replays and self.beside is not None and self.seen[size] > EAGER_STEPS:
            self.replays[size] = self._recorded(size, held)
        if size in self.replays:
            self.replays[size]()
        elif self.beside is not None:
            self.beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.beside):
                self.losses[size] = self.compute(held)
            torch.cuda.current_stream().wait_stream(self.beside)
        else:
            self.losses[size] = self.compute(held)
        return self.losses[size].detach().clone()

    def _hold(self, size: int, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copy values into the tensors of a batch size; CUDA gets them from pinned memory, so that nothing waits."""
        if size not in self.held:
            self.held[size] = {
                name: torch.empty_like(_single(value), device=self.device) for name, value in values.items()
            }
        for name, value in values.items():
            source = _single(value).contiguous()
            source = source.pin_memory() if self.device.type == "cuda" else source
            self.held[size][name].copy_(source, non_blocking=True)
        return self.held[size]

    def _recorded(self, size: int, held: dict[str, Tensor]) -> Callable[[], None]:
        """Record a step, and return what replays it. Where it cannot be recorded, steps go on as they were."""
        graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize(self.device)
        try:
            with torch.cuda.graph(graph):
                self.losses[size] = self.compute(held)
        except RuntimeError as error:
            torch.cuda.synchronize(self.device)
            reason = str(error).splitlines()[0]
            logger.warning("A training step cannot be recorded (%s). Training goes on step by step.", reason)

            def one_by_one() -> None:
                self.losses[size] = self.compute(held)

            return one_by_one
        return graph.replay

    def compute(self, held: dict[str, Tensor]) -> Tensor:
        """Do all of a step with the given tensors. Nothing in here may depend on their values but through tensors."""
        images, masks = take_batch(self.volumes, held, self.model.neighbours, dense=True)
        self.optimizer.zero_grad(set_to_none=True)
        reduced = self.precision != torch.float32
        with torch.autocast(self.device.type, self.precision, enabled=reduced, cache_enabled=False):
            loss = self.model.loss(images, masks, held)
        loss.backward()
        if self.largest_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.largest_norm, foreach=True)
        for group in self.optimizer.param_groups:
            group["lr"].copy_(held[RATE])
        self.optimizer.step()
        if self.average is not self.model:
            averages: list[Tensor] = list(self.average.parameters())
            weights: list[Tensor] = list(self.model.parameters())
            with torch.no_grad():
                follow(averages, weights, held[DECAY])
                copy_statistics(self.average, self.model)
        return loss.detach()


def follow(averages: list[Tensor], weights: list[Tensor], decay: Tensor) -> None:
    """Bring moving averages up to date, in place: a + (1 - decay) * (w - a).

    Args:
        averages: To change.
        weights: What they follow.
        decay: A scalar, on their device.
    """
    steps = torch._foreach_sub(weights, averages)
    torch._foreach_mul_(steps, 1 - decay)
    torch._foreach_add_(averages, steps)


def copy_statistics(average: nn.Module, model: nn.Module) -> None:
    """Give the averaged model what the other has measured in training, such as the means of batch normalisation."""
    weights = {name for name, _ in model.named_parameters()}
    theirs = model.state_dict()
    for name, value in average.state_dict().items():
        if name not in weights:
            value.copy_(theirs[name])


def _single(value: Tensor) -> Tensor:
    """Return a tensor in single precision, which is all that an accelerator may have."""
    return value.float() if value.dtype == torch.float64 else value
