"""Training by the clock: how much of its time is used; and the learning rate that follows, or that of a step."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

VALIDATIONS = 20  # in the course of a training by the clock


def annealed(progress: float) -> float:
    """Return the factor of the learning rate at a progress from 0 to 1 of the training: half a cosine from 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def learning_rate_factor(step: int, steps: int, warmup_steps: int, decay_steps: int) -> float:
    """Return the factor of the full learning rate at a step: rising, then 1, then falling towards zero."""
    warmth = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    return warmth * (min(1.0, (steps - step) / decay_steps) if decay_steps else 1.0)


@dataclass
class Budget:
    """The time that a training may take, counted from its start. Compiling and warming up count.

    A resumed training brings the time that was used before, and gets its own on top. So it goes on where the schedule
    stood as a share of both, and ends annealed again.

    Attributes:
        seconds: What this run may use.
        used_before: What earlier runs used.
        started: ``time.monotonic()`` at the start of this run.
        last_validation: Seconds that the latest validation took. So much is kept for the one at the end.
        validated: How many of the 20 equal parts of the budget were over at the latest validation.
    """

    seconds: float
    used_before: float = 0.0
    started: float = field(default_factory=time.monotonic)
    last_validation: float = 0.0
    validated: int = 0

    @property
    def used(self) -> float:
        """Seconds used by all runs so far."""
        return self.used_before + time.monotonic() - self.started

    @property
    def left(self) -> float:
        """Seconds that are left for training, and 0 when only those for the last validation are."""
        return max(0.0, self.used_before + self.seconds - self.used - 1.5 * self.last_validation)

    @property
    def progress(self) -> float:
        """How much of the time of all runs is used, 0 to 1."""
        total = self.used_before + self.seconds - 1.5 * self.last_validation
        return min(1.0, self.used / max(total, 1e-9))

    def validation_due(self) -> bool:
        """Whether a validation is due, which is so 20 times in all, in equal times."""
        return int(self.progress * VALIDATIONS) > self.validated

    def has_validated(self, seconds: float) -> None:
        """Note that a validation has just taken so many seconds."""
        self.last_validation = seconds
        self.validated = int(self.progress * VALIDATIONS)
