"""Ways to make one anomaly map of SSIM maps at several widths, to compare with the published one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from brainuad.scoring.ssim import fuse_maps, ssim_maps

SHARPNESS = 10.0  # of "softmin": its exp(-10 SSIM) is nearer to the minimum than the published exp(-SSIM)
LEARNT = "learnt"


def _softmin(similarities: Tensor, _: Sequence[float]) -> Tensor:
    return (torch.softmax(-SHARPNESS * similarities, 0) * similarities).sum(0)


def _weighted(similarities: Tensor, weights: Sequence[float]) -> Tensor:
    if len(weights) != len(similarities):
        raise ValueError(f"{len(weights)} weights for {len(similarities)} widths")
    shares = torch.tensor(weights, dtype=similarities.dtype, device=similarities.device)
    return torch.einsum("k,kxyz->xyz", shares, similarities)


# From similarities (K, X, Y, Z) and K weights to the ensemble's (X, Y, Z).
ENSEMBLES: dict[str, Callable[[Tensor, Sequence[float]], Tensor]] = {
    "default": lambda similarities, _: fuse_maps(similarities.split(1)),  # weights softmax(-SSIM), as published
    "mean": lambda similarities, _: similarities.mean(0),
    "max": lambda similarities, _: similarities.amin(0),  # the most anomalous width
    "min": lambda similarities, _: similarities.amax(0),  # the least anomalous one
    "softmin": _softmin,
    LEARNT: _weighted,  # by weights fitted to the lesions of validation scans, none negative
}


def ensemble(similarities: Tensor, name: str, weights: Sequence[float] = ()) -> Tensor:
    """Return the anomaly map of an ensemble, in [0, 2].

    Args:
        similarities: SSIM maps ``(K, X, Y, Z)``.
        name: One of ``ENSEMBLES``.
        weights: Of the widths, for "learnt"; their sum is 1.

    Raises:
        ValueError: There are more or fewer weights than widths.
    """
    return 1 - ENSEMBLES[name](similarities, weights)


def learn_weights(anomalies: np.ndarray, lesion: np.ndarray) -> list[float]:
    """Return non-negative weights of maps whose sum tells lesion from healthy voxels best, in the least squares.

    Lawson and Hanson, "Solving Least Squares Problems", 1974; the constant is free.

    Args:
        anomalies: ``(N, K)`` map values of voxels.
        lesion: ``(N,)`` bool.

    Returns:
        K weights whose sum is 1, equal ones where no map helps.
    """
    from scipy import optimize  # slow to import, and scoring does without

    ones = np.ones((len(anomalies), 1))
    weights, _ = optimize.nnls(np.hstack([anomalies, ones, -ones]), lesion.astype(np.float64))
    weights = weights[: anomalies.shape[1]]
    total = float(weights.sum())
    return (weights / total if total > 0 else np.full(len(weights), 1 / len(weights))).tolist()


def slicewise_ssim_maps(reconstruction: Tensor, image: Tensor, *, sigmas: Sequence[float]) -> Tensor:
    """Return SSIM maps of volumes (X, Y, Z) as `ssim_maps` does, with two-dimensional windows in axial slices."""
    data_range = max(float(volume.max() - volume.min()) for volume in (reconstruction, image)) or 1.0
    slices = [
        ssim_maps(reconstruction[:, :, [z]], image[:, :, [z]], sigmas=sigmas, data_range=data_range)
        for z in range(image.shape[2])
    ]
    return torch.cat(slices, dim=3)
