"""How far a scan is from several reconstructions of it, measured by how these differ among themselves."""

from __future__ import annotations

from typing import Any

import torch
from scipy import ndimage
from torch import Tensor

from brainuad.errors import InputError
from brainuad.registry import SCORES
from brainuad.scoring._arrays import as_volume, keep_inside, mask_on
from brainuad.scoring.ssim import ssim_maps

DRAWS = 10
REGULARISATION = 0.01  # added to the variance of every pixel
SMOOTHING_VOXELS = 1.0
SSIM_WIDTH = 1.0


@SCORES.register("mahalanobis", draws=DRAWS)
def mahalanobis(image: Any, reconstructions: Any, mask: Any) -> Tensor:
    """Return the distance to the reconstructions of a stochastic model, times one minus SSIM with their mean.

    The distance is brought to [0, 1] over the volume and smoothed, so that its values are not those of another scan's.
    Reconstructions that are all alike make it the absolute difference.

    Args:
        image: Volume (X, Y, Z), the brain in [0, 1].
        reconstructions: Volumes (S, X, Y, Z) on the same scale, of independent draws.
        mask: Brain mask (X, Y, Z).

    Returns:
        (X, Y, Z) float32 in [0, 2], 0 outside the mask.

    Raises:
        InputError: There is one reconstruction only.
        ValueError: The shapes do not fit together.
    """
    scan = as_volume(image, "image")
    stack = as_volume(reconstructions, "reconstructions", 4).to(scan.device)
    if len(stack) < 2:
        raise InputError("mahalanobis", "needs 2 or more reconstructions, got 1", f"{DRAWS} draws are published")
    if stack.shape[1:] != scan.shape:
        raise ValueError(f"image has shape {tuple(scan.shape)}, reconstructions {tuple(stack.shape)}")
    distance = keep_inside(distances(scan, stack, mask), mask)
    low, high = distance.min(), distance.max()
    scaled = (distance - low) / (high - low).clamp(min=torch.finfo(distance.dtype).tiny)
    smooth = torch.from_numpy(ndimage.gaussian_filter(scaled.cpu().numpy(), SMOOTHING_VOXELS)).to(scan.device)
    dissimilarity = 1 - ssim_maps(stack.mean(0), scan, sigmas=[SSIM_WIDTH])[0]
    return keep_inside(smooth.float() * dissimilarity.float(), mask)


def distances(image: Tensor, reconstructions: Tensor, mask: Any) -> Tensor:
    """Return each pixel's part of the Mahalanobis distance of an axial slice to its reconstructions.

    With the mean m of K reconstructions, their centred rows C and d = image - m in the brain, S = C'C / (K - 1) + L I
    and a pixel has sqrt(d_i (S^-1 d)_i), 0 where the product is negative. By Woodbury's identity S^-1 d is
    [d - C' (L (K - 1) I + C C')^-1 C d] / L, for which K equations are solved.

    Args:
        image: (X, Y, Z).
        reconstructions: (K, X, Y, Z), K > 1.
        mask: Brain mask (X, Y, Z).

    Returns:
        (X, Y, Z) float64.
    """
    inside = mask_on(image, mask)
    mean = reconstructions.double().mean(0)

    def rows(volumes: Tensor) -> Tensor:
        """Return the brain of volumes (N, X, Y, Z), a row a volume: (Z, N, X * Y)."""
        return torch.where(inside, volumes, 0.0).flatten(1, 2).permute(2, 0, 1)

    centred, difference = rows(reconstructions - mean), rows((image - mean)[None])
    count = len(reconstructions)
    ridge = REGULARISATION * (count - 1) * torch.eye(count, dtype=torch.float64, device=image.device)
    shares = torch.linalg.solve(ridge + centred @ centred.mT, centred @ difference.mT)
    whitened = (difference - shares.mT @ centred) / REGULARISATION
    product = (difference * whitened).clamp(min=0)
    return product.sqrt()[:, 0].T.reshape(image.shape)
