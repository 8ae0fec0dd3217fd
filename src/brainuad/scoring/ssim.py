"""Structural similarity of two volumes at several Gaussian widths, and their ensemble.

SSIM is Wang et al., "Image quality assessment: from error visibility to structural similarity", IEEE TIP
13(4), 2004, here in three dimensions with a Gaussian window. The ensemble over widths is Behrendt et al.,
"Diffusion models with ensembled structure-based anomaly scoring for unsupervised anomaly detection", ISBI
2024.

Everything is separable: a window is three one-dimensional blurs made of shifted additions. That is twice as
fast on a processor as products with banded matrices, and does not depend on the precision that PyTorch is
allowed for products (TF32, autocast), which would drown the variances.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from brainuad.config import SSIM_SIGMAS
from brainuad.scoring._arrays import as_volume

K1 = 0.01
K2 = 0.03


def ssim_maps(
    reconstruction: Any, image: Any, *, sigmas: Sequence[float], data_range: float | None = None
) -> Tensor:
    """Return one three-dimensional SSIM map for every Gaussian width.

    The window of width sigma has ``2 * floor(3.5 * sigma + 0.5) + 1`` voxels along every axis. Borders are
    reflected without repeating the edge voxel, as often as the window asks for it, so an axis may be shorter
    than the window; a volume of one slice gets the two-dimensional SSIM. Variances are population statistics.

    Args:
        reconstruction: Volume (X, Y, Z), tensor or array, on any device.
        image: Volume (X, Y, Z) to compare it with.
        sigmas: Gaussian widths in voxels.
        data_range: The constant L of SSIM, in the volumes' unit; by default the larger of the two volumes'
            (max - min). Where both are constant that is zero, and 1 is taken in its place.

    Returns:
        Similarities in [-1, 1], (K, X, Y, Z), 1 where the volumes agree in the whole window; float32, or
        float64 where an input is.

    Raises:
        ValueError: The shapes differ or are not (X, Y, Z), or a width or the data range is not positive.
    """
    each = _each_map(reconstruction, image, sigmas, data_range)
    first = next(each)
    maps = first.new_empty((len(sigmas), *first.shape))
    maps[0] = first
    for index, similarity in enumerate(each, start=1):
        maps[index] = similarity
    return maps


def ssim_ensemble(
    reconstruction: Any,
    image: Any,
    *,
    sigmas: Sequence[float] = SSIM_SIGMAS,
    data_range: float | None = None,
) -> Tensor:
    """Return the SSIM ensemble: per voxel, a mean over widths that favours the less similar ones.

    The weights are ``exp(-SSIM_k) / sum_k exp(-SSIM_k)`` (Behrendt et al., ISBI 2024).

    Args:
        reconstruction: Volume (X, Y, Z), tensor or array, on any device.
        image: Volume (X, Y, Z) to compare it with.
        sigmas: Gaussian widths in voxels.
        data_range: As in `ssim_maps`.

    Returns:
        Similarity in [-1, 1], (X, Y, Z).

    Raises:
        ValueError: As `ssim_maps`.
    """
    return fuse_maps(_each_map(reconstruction, image, sigmas, data_range))


def fuse_maps(maps: Iterator[Tensor] | Sequence[Tensor] | Tensor) -> Tensor:
    """Return the ensemble of SSIM maps, (K, X, Y, Z) or one (X, Y, Z) at a time; see `ssim_ensemble`."""
    # SSIM lies in [-1, 1], so the exponentials need no guard and the maps need not be kept.
    weighted: Tensor | float = 0.0
    total: Tensor | float = 0.0
    for similarity in maps:
        weight = torch.exp(-similarity)
        total += weight
        weighted += weight.mul_(similarity)
    return torch.as_tensor(weighted / total)


def _each_map(
    reconstruction: Any, image: Any, sigmas: Sequence[float], data_range: float | None
) -> Iterator[Tensor]:
    first = as_volume(reconstruction, "reconstruction")
    second = as_volume(image, "image").to(first.device)
    if first.shape != second.shape:
        raise ValueError(
            f"reconstruction and image differ in shape: {tuple(first.shape)} and {tuple(second.shape)}"
        )
    if len(sigmas) == 0 or min(sigmas) <= 0:
        raise ValueError(f"sigmas must be positive, and at least one, got {tuple(sigmas)}")
    if data_range is None:
        data_range = max(float(v.max() - v.min()) for v in (first, second)) or 1.0
    if not data_range > 0:
        raise ValueError(f"data_range must be positive, got {data_range}")

    # In the sum s and the difference d of the two volumes, SSIM is the product of
    #   (mean_s^2 - mean_d^2 + 2 C1) / (mean_s^2 + mean_d^2 + 2 C1)  and
    #   (var_s - var_d + 2 C2) / (var_s + var_d + 2 C2):
    # four blurs in place of five, a covariance without cancellation, and never outside [-1, 1]. The variance
    # of s still cancels in float32, so s is centred first, which no variance notices.
    total = first + second
    centre = (total.max() + total.min()) / 2
    total -= centre
    difference = first - second
    for sigma in sigmas:
        yield _similarity(total, difference, centre, gaussian_kernel(sigma), data_range)


def _similarity(
    total: Tensor, difference: Tensor, centre: Tensor, kernel: list[float], data_range: float
) -> Tensor:
    """Return the SSIM map from the sum, less ``centre``, and the difference of two volumes."""
    luminance = 2 * (K1 * data_range) ** 2
    contrast = 2 * (K2 * data_range) ** 2
    mean_total, variance_total = _mean_and_variance(total, kernel)
    mean_difference, variance_difference = _mean_and_variance(difference, kernel)
    mean_total.add_(centre).square_()
    mean_difference.square_()
    # Each quotient on its own is exactly 1 where the volumes agree.
    similarity = (mean_total - mean_difference).add_(luminance)
    similarity.div_(mean_total.add_(mean_difference).add_(luminance))
    structure = (variance_total - variance_difference).add_(contrast)
    structure.div_(variance_total.add_(variance_difference).add_(contrast))
    return similarity.mul_(structure)


def gaussian_kernel(sigma: float) -> list[float]:
    """Return the Gaussian window: ``2 * floor(3.5 * sigma + 0.5) + 1`` weights whose sum is 1."""
    half = math.floor(3.5 * sigma + 0.5)
    weights = [math.exp(-0.5 * (offset / sigma) ** 2) for offset in range(-half, half + 1)]
    norm = math.fsum(weights)
    return [weight / norm for weight in weights]


def _mean_and_variance(volume: Tensor, kernel: list[float]) -> tuple[Tensor, Tensor]:
    mean = _blur(volume, kernel)
    return mean, _blur(volume.square(), kernel).addcmul_(mean, mean, value=-1).clamp_(min=0)


def _blur(volume: Tensor, kernel: list[float]) -> Tensor:
    """Return ``volume`` convolved with a symmetric kernel along every axis, borders reflected."""
    half = len(kernel) // 2
    if half == 0:
        return volume.clone()
    for axis in range(volume.ndim):
        length = volume.shape[axis]
        before, after = _reflected_indices(length, half, volume.device)
        padded = torch.cat(
            [volume.index_select(axis, before), volume, volume.index_select(axis, after)], dim=axis
        )
        blurred = volume * kernel[half]
        for offset in range(half):
            blurred.add_(padded.narrow(axis, offset, length), alpha=kernel[offset])
            blurred.add_(padded.narrow(axis, 2 * half - offset, length), alpha=kernel[offset])
        volume = blurred
    return volume


def _reflected_indices(length: int, half: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return which voxels stand before and after an axis that is mirrored at both ends, again and again."""
    period = max(2 * (length - 1), 1)
    outside = [*range(-half, 0), *range(length, length + half)]
    mirrored = [min(i % period, period - i % period) if length > 1 else 0 for i in outside]
    indices = torch.tensor(mirrored, device=device)
    return indices[:half], indices[half:]
