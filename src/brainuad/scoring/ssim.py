"""Structural similarity of two volumes at several Gaussian widths, and their ensemble.

SSIM is Wang et al., "Image quality assessment: from error visibility to structural similarity", IEEE TIP
13(4), 2004, here in three dimensions with a Gaussian window. The ensemble over widths is Behrendt et al.,
"Diffusion models with ensembled structure-based anomaly scoring for unsupervised anomaly detection", ISBI
2024.

Everything is separable: a window is three one-dimensional blurs. On a processor they are made of shifted additions,
twice as fast there as products with banded matrices, and volumes are worked on in slabs of sagittal planes that stay in
its cache: every voxel is the same sum in the same order, in a fraction of the memory. CUDA, where every call costs
microseconds however little it does, takes the products: three calls in place of one a tap.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
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
GROUP_VOXELS = 2**27  # on CUDA, of the widths that are worked on at a time; some three such arrays are in use


def ssim_maps(reconstruction: Any, image: Any, *, sigmas: Sequence[float], data_range: float | None = None) -> Tensor:
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

    Examples:
        >>> import numpy as np
        >>> image = np.zeros((16, 16, 16), dtype=np.float32)
        >>> image[4:12, 4:12, 4:12] = 1
        >>> reconstruction = image.copy()
        >>> reconstruction[8, 8, 8] = 0.5  # one voxel differs
        >>> maps = ssim_maps(reconstruction, image, sigmas=[0.3, 1.5])
        >>> maps.shape
        torch.Size([2, 16, 16, 16])
        >>> [round(value, 2) for value in maps[:, 8, 8, 8].tolist()]  # low in a small window, higher in a large one
        [0.11, 0.92]
        >>> maps[:, 0, 0, 0].tolist()  # both are equal here
        [1.0, 1.0]
    """
    pair = _Pair.of(reconstruction, image, sigmas, data_range)
    maps = pair.total.new_empty((len(sigmas), *pair.total.shape))
    for planes in pair.slabs():
        first = 0
        for group in pair.groups(planes, sigmas):
            maps[first : first + len(group), planes.start : planes.stop] = group
            first += len(group)
    return maps


def ssim_ensemble(
    reconstruction: Any, image: Any, *, sigmas: Sequence[float] = SSIM_SIGMAS, data_range: float | None = None
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

    Examples:
        >>> import numpy as np
        >>> image = np.zeros((16, 16, 16), dtype=np.float32)
        >>> image[4:12, 4:12, 4:12] = 1
        >>> reconstruction = image.copy()
        >>> reconstruction[8, 8, 8] = 0.5
        >>> similarity = ssim_ensemble(reconstruction, image)
        >>> round(float(similarity[8, 8, 8]), 2), round(float(similarity[0, 0, 0]), 2)
        (0.25, 1.0)
    """
    pair = _Pair.of(reconstruction, image, sigmas, data_range)
    fused = torch.empty_like(pair.total)
    for planes in pair.slabs():
        fused[planes.start : planes.stop] = fuse_maps(pair.groups(planes, sigmas))
    return fused


def fuse_maps(groups: Iterable[Tensor]) -> Tensor:
    """Return the ensemble of SSIM maps (X, Y, Z), which come in groups (k, X, Y, Z); see `ssim_ensemble`."""
    # SSIM lies in [-1, 1], so the exponentials need no guard and the maps need not be kept.
    weighted: Tensor | float = 0.0
    total: Tensor | float = 0.0
    for similarities in groups:
        weights = torch.exp(-similarities)
        total += _sum(weights)
        weighted += _sum(weights.mul_(similarities))
    return torch.as_tensor(weighted / total)


def _sum(group: Tensor) -> Tensor:
    return group[0] if len(group) == 1 else group.sum(0)  # one is not copied


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
            data_range = float(torch.stack([v.max() - v.min() for v in (first, second)]).max()) or 1.0
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

    def groups(self, planes: range, sigmas: Sequence[float]) -> Iterator[Tensor]:
        """Yield the SSIM maps of some sagittal planes in the order of the widths, some at a time: (k, X, Y, Z)."""
        kernels = [gaussian_kernel(sigma) for sigma in sigmas]
        if self.total.is_cuda:
            pair = torch.stack([self.total, self.difference])
            pair = torch.cat([pair, pair.square()])
            most = max(1, GROUP_VOXELS // pair.numel())
            for first in range(0, len(kernels), most):
                yield self._similarity(*blur(pair, kernels[first : first + most]))
            return
        for kernel in kernels:
            yield self._on_planes(planes, kernel)[None]

    def _on_planes(self, planes: range, kernel: list[float]) -> Tensor:
        """Return the SSIM map of one width on some sagittal planes."""
        total, squared_total = _moments(self.total, planes, kernel)
        difference, squared_difference = _moments(self.difference, planes, kernel)
        return self._similarity(total, difference, squared_total, squared_difference)

    def _similarity(
        self, mean_total: Tensor, mean_difference: Tensor, squared_total: Tensor, squared_difference: Tensor
    ) -> Tensor:
        """Return SSIM from the blurred volumes and the blurred squares of their voxels, which are overwritten."""
        luminance = 2 * (K1 * self.data_range) ** 2
        contrast = 2 * (K2 * self.data_range) ** 2
        variance_total = squared_total.addcmul_(mean_total, mean_total, value=-1).clamp_(min=0)
        variance_difference = squared_difference.addcmul_(mean_difference, mean_difference, value=-1)
        variance_difference.clamp_(min=0)
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


def _moments(volume: Tensor, planes: range, kernel: list[float]) -> tuple[Tensor, Tensor]:
    """Return some sagittal planes of a volume, and of the squares of its voxels, convolved with a kernel."""
    half = len(kernel) // 2
    around = _reflected(range(planes.start - half, planes.stop + half), len(volume), volume.device)
    slab = volume.index_select(0, around)
    return _blur(slab, kernel), _blur(slab.square_(), kernel)


def blur(volumes: Tensor, kernels: Sequence[list[float]]) -> Tensor:
    """Return whole volumes convolved with symmetric kernels along every axis; borders are reflected.

    Args:
        volumes: (N, X, Y, Z).
        kernels: K kernels.

    Returns:
        (N, K, X, Y, Z).
    """
    (count, x, y, z), number = volumes.shape, len(kernels)
    along_x, along_y, along_z = (
        torch.stack([_operator(length, tuple(kernel), volumes.dtype, volumes.device) for kernel in kernels])
        for length in (x, y, z)
    )
    with _full_precision(volumes.device):
        blurred = along_x.reshape(number * x, x) @ volumes.reshape(count, x, y * z)
        # one product for all volumes and kernels takes the axis at the end
        rows = blurred.reshape(count, number, x, y, z).transpose(-1, -2).reshape(count, number, x * z, y)
        rows = rows @ along_y.transpose(-1, -2)
        rows = rows.reshape(count, number, x, z, y).transpose(-1, -2).reshape(count, number, x * y, z)
        return (rows @ along_z.transpose(-1, -2)).reshape(count, number, x, y, z)


@lru_cache(maxsize=256)  # sending them to a GPU would wait for what runs there
def _operator(length: int, kernel: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the convolution of an axis that is mirrored at both ends as a matrix, (length, length)."""
    half = len(kernel) // 2
    with torch.inference_mode(False):  # the cache outlives the caller's mode
        matrix = torch.zeros(length, length, dtype=torch.float64)
        for offset, weight in enumerate(kernel, start=-half):
            mirrored = _mirrored(range(offset, length + offset), length)
            matrix[range(length), mirrored] += weight
        return matrix.to(device, dtype)


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Make matrix products in the precision of their factors: TF32 or autocast would drown the variances."""
    matmul: Any = torch.backends.cuda.matmul
    # PyTorch refuses to read the older setting of a process that has made the newer one
    name, full = ("fp32_precision", "ieee") if hasattr(matmul, "fp32_precision") else ("allow_tf32", False)
    before = getattr(matmul, name)
    setattr(matmul, name, full)
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        setattr(matmul, name, before)


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


@lru_cache(maxsize=256)
def _reflected(indices: range, length: int, device: torch.device) -> Tensor:
    """Return which voxels stand at given places of an axis that is mirrored at both ends, again and again."""
    with torch.inference_mode(False):  # the cache outlives the caller's mode
        return torch.tensor(_mirrored(indices, length), device=device)


def _mirrored(indices: range, length: int) -> list[int]:
    period = max(2 * (length - 1), 1)
    return [min(i % period, period - i % period) if length > 1 else 0 for i in indices]
