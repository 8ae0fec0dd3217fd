"""What the product counts in bins, here of all voxels at once."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def false_positive_threshold(scores: Iterable[np.ndarray], fraction: float) -> float:
    """The smallest score of healthy brain that no more than a fraction of all scans' voxels exceeds."""
    ascending = np.sort(np.concatenate([np.ravel(of_scan) for of_scan in scores]))
    return float(ascending[len(ascending) - 1 - int(round(fraction * len(ascending), 6))])
