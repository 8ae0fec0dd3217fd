"""Structural similarity of two volumes at several Gaussian widths, and their ensemble.

SSIM is Wang et al., "Image quality assessment: from error visibility to structural similarity", IEEE TIP
13(4), 2004, here in three dimensions with a Gaussian window. The ensemble over widths is Behrendt et al.,
"Diffusion models with ensembled structure-based anomaly scoring for unsupervised anomaly detection", ISBI
2024.

Everything is separable: a window is three one-dimensional blurs made of shifted additions. That is twice as
fast on a processor as products with banded matrices, and does not depend on the precision that PyTorch is
allowed for products (TF32, autocast), which would drown the variances. On a processor, volumes are worked on in
slabs of sagittal planes that stay in its cache: the result is the same to the bit, in a fraction of the memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from brainuad.config import SSIM_SIGMAS
from brainuad.scoring._arrays import as_volume

K1 = 0.01
K2 = 0.03
SLAB_VOXELS = 2**17  # of 4 bytes each; some ten such arrays are in use at a time


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
    pair = _Pair.of(reconstruction, image, sigmas, data_range)
    maps = pair.total.new_empty((len(sigmas), *pair.total.shape))
    for planes in pair.slabs():
        for index, sigma in enumerate(sigmas):
            maps[index, planes.start : planes.stop] = pair.similarity(planes, sigma)
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
    pair = _Pair.of(reconstruction, image, sigmas, data_range)
    fused = torch.empty_like(pair.total)
    for planes in pair.slabs():
        fused[planes.start : planes.stop] = fuse_maps(pair.similarity(planes, sigma) for sigma in sigmas)
    return fused


def fuse_maps(maps: Iterable[Tensor]) -> Tensor:
    """Return the ensemble of SSIM maps, (K, X, Y, Z) or one (X, Y, Z) at a time; see `ssim_ensemble`."""
    # SSIM lies in [-1, 1], so the exponentials need no guard and the maps need not be kept.
    weighted: Tensor | float = 0.0
    total: Tensor | float = 0.0
    for similarity in maps:
        weight = torch.exp(-similarity)
        total += weight
        weighted += weight.mul_(similarity)
    return torch.as_tensor(weighted / total)


@dataclass(frozen=True, eq=False)
class _Pair:
    """Two volumes as their sum and their difference.

    In these, SSIM is the product of
      (mean_s^2 - mean_d^2 + 2 C1) / (mean_s^2 + mean_d^2 + 2 C1)  and
      (var_s - var_d + 2 C2) / (var_s + var_d + 2 C2):
    four blurs in place of five, a covariance without cancellation, and never outside [-1, 1]. The variance of s still
    cancels in float32, so s is centred first, which no variance notices.

    Attributes:
        total: The sum less ``centre``, (X, Y, Z).
        difference: (X, Y, Z).
        centre: The middle of the sum's values.
        data_range: The constant L of SSIM.
    """

    total: Tensor
    difference: Tensor
    centre: Tensor
    data_range: float

    @classmethod
    def of(cls, reconstruction: Any, image: Any, sigmas: Sequence[float], data_range: float | None) -> _Pair:
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
        total = first + second
        centre = (total.max() + total.min()) / 2
        return cls(total.sub_(centre), first - second, centre, data_range)

    def slabs(self) -> Iterator[range]:
        """Yield runs of sagittal planes that cover the volume."""
        planes, plane = len(self.total), self.total[0].numel()
        step = max(1, SLAB_VOXELS // plane) if self.total.device.type == "cpu" else planes
        step = math.ceil(planes / math.ceil(planes / step))  # equal slabs
        for first in range(0, planes, step):
            yield range(first, min(first + step, planes))

    def similarity(self, planes: range, sigma: float) -> Tensor:
        """Return the SSIM map of some sagittal planes."""
        kernel = gaussian_kernel(sigma)
        luminance = 2 * (K1 * self.data_range) ** 2
        contrast = 2 * (K2 * self.data_range) ** 2
        mean_total, variance_total = _mean_and_variance(self.total, planes, kernel)
        mean_difference, variance_difference = _mean_and_variance(self.difference, planes, kernel)
        mean_total.add_(self.centre).square_()
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


def _mean_and_variance(volume: Tensor, planes: range, kernel: list[float]) -> tuple[Tensor, Tensor]:
    half = len(kernel) // 2
    around = _reflected(range(planes.start - half, planes.stop + half), len(volume), volume.device)
    slab = volume.index_select(0, around)
    mean = _blur(slab, kernel)
    return mean, _blur(slab.square_(), kernel).addcmul_(mean, mean, value=-1).clamp_(min=0)


def _blur(slab: Tensor, kernel: list[float]) -> Tensor:
    """Return a slab convolved with a symmetric kernel along every axis.

    Along the first axis the slab brings what stands around it, which is not returned; other borders are reflected.
    """
    half = len(kernel) // 2
    volume = _convolve(slab, 0, kernel)
    for axis in (1, 2) if half else ():
        length = volume.shape[axis]
        before = _reflected(range(-half, 0), length, volume.device)
        after = _reflected(range(length, length + half), length, volume.device)
        pieces = [volume.index_select(axis, before), volume, volume.index_select(axis, after)]
        volume = _convolve(torch.cat(pieces, dim=axis), axis, kernel)
    return volume


def _convolve(padded: Tensor, axis: int, kernel: list[float]) -> Tensor:
    """Return the convolution along one axis where the kernel lies inside."""
    half = len(kernel) // 2
    length = padded.shape[axis] - 2 * half
    result = padded.narrow(axis, half, length) * kernel[half]
    for offset in range(half):
        result.add_(padded.narrow(axis, offset, length), alpha=kernel[offset])
        result.add_(padded.narrow(axis, 2 * half - offset, length), alpha=kernel[offset])
    return result


@lru_cache(maxsize=256)  # sending them to a GPU would wait for what runs there
def _reflected(indices: range, length: int, device: torch.device) -> Tensor:
    """Return which voxels stand at given places of an axis that is mirrored at both ends, again and again."""
    period = max(2 * (length - 1), 1)
    mirrored = [min(i % period, period - i % period) if length > 1 else 0 for i in indices]
    with torch.inference_mode(False):  # the cache outlives the caller's mode
        return torch.tensor(mirrored, device=device)
