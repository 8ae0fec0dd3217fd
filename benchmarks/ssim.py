"""Time the SSIM ensemble against a plain dense implementation, in one process, on a 96 x 96 x 50 volume.

Run ``python benchmarks/ssim.py [threads]``. It prints the ratio for every width and for the ensemble, and how
far the two are apart. Each figure is the fastest of a few runs, the two implementations taking turns.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from brainuad.config import SSIM_SIGMAS
from brainuad.scoring import ssim_ensemble, ssim_maps
from brainuad.scoring.ssim import gaussian_kernel

SHAPE = (96, 96, 50)
RUNS = 3


def dense_map(reconstruction: Tensor, image: Tensor, sigma: float) -> Tensor:
    line = torch.tensor(gaussian_kernel(sigma))
    kernel = (line[:, None, None] * line[None, :, None] * line)[None, None]
    x, y = reconstruction, image
    stack = F.pad(torch.stack([x, y, x * x, y * y, x * y])[:, None], (len(line) // 2,) * 6, mode="reflect")
    mean_x, mean_y, xx, yy, xy = F.conv3d(stack, kernel)[:, 0]
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_x * mean_y + c1) * (2 * (xy - mean_x * mean_y) + c2)
    return similarity / ((mean_x**2 + mean_y**2 + c1) * (xx + yy - mean_x**2 - mean_y**2 + c2))


def dense_ensemble(reconstruction: Tensor, image: Tensor) -> Tensor:
    maps = torch.stack([dense_map(reconstruction, image, sigma) for sigma in SSIM_SIGMAS])
    return (torch.softmax(-maps, 0) * maps).sum(0)


def compare(name: str, dense: Callable[[], Tensor], ours: Callable[[], Tensor]) -> None:
    seconds = {dense: float("inf"), ours: float("inf")}
    results = {}
    for _ in range(RUNS):
        for function in seconds:
            start = time.perf_counter()
            results[function] = function()
            seconds[function] = min(seconds[function], time.perf_counter() - start)
    ratio = seconds[dense] / seconds[ours]
    apart = (results[dense] - results[ours]).abs().max()
    print(
        f"{name:>10}  dense {1e3 * seconds[dense]:7.1f} ms  ours {1e3 * seconds[ours]:6.1f} ms  "
        f"{ratio:5.1f}x  max difference {apart:.0e}"
    )


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(SHAPE, generator=generator)
    reconstruction = (image + 0.1 * torch.randn(SHAPE, generator=generator)).clamp(0, 1)
    for sigma in SSIM_SIGMAS:
        compare(
            f"{sigma}",
            lambda sigma=sigma: dense_map(reconstruction, image, sigma),
            lambda sigma=sigma: ssim_maps(reconstruction, image, sigmas=[sigma], data_range=1.0)[0],
        )
    compare(
        "ensemble",
        lambda: dense_ensemble(reconstruction, image),
        lambda: ssim_ensemble(reconstruction, image, data_range=1.0),
    )


if __name__ == "__main__":
    main()
