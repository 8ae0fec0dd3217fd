"""What the scores take for a volume: tensors on any device, NumPy arrays of any type and memory layout."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_volume(array: Any, name: str = "volume", dimensions: int = 3) -> Tensor:
    """Return an array as a floating-point tensor without gradient: float32, or float64 where it is that.

    Args:
        array: Tensor or anything NumPy understands; booleans become 0 and 1.
        name: What the array is, for messages.
        dimensions: How many axes it must have.

    Raises:
        ValueError: The array has another number of axes, or no voxels.
    """
    if isinstance(array, Tensor):
        tensor = array.detach()
    else:
        values = np.asarray(array)
        # A copy, because PyTorch takes neither reversed axes nor foreign byte order nor read-only memory.
        dtype = "f8" if values.dtype.str[1:] == "f8" else "f4"
        tensor = torch.from_numpy(np.array(values, dtype=dtype, order="C"))
    if tensor.ndim != dimensions or tensor.numel() == 0:
        raise ValueError(f"{name} must have {dimensions} non-empty axes, got shape {tuple(tensor.shape)}")
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def as_mask(array: Any, name: str = "mask") -> np.ndarray:
    """Return a mask (X, Y, Z) as a bool array: true where it is not zero.

    Raises:
        ValueError: The array does not have three axes.
    """
    values = array.detach().cpu().numpy() if isinstance(array, Tensor) else np.asarray(array)
    if values.ndim != 3:
        raise ValueError(f"{name} must be (X, Y, Z), got shape {values.shape}")
    return values.astype(bool)


def keep_inside(values: Tensor, mask: Any) -> Tensor:
    """Return a volume with zeros where the mask is false.

    Raises:
        ValueError: The mask has another shape than the volume.
    """
    inside = mask_on(values, mask)
    # Not a product: what a model paints outside the brain need not be finite.
    nothing = torch.zeros((), dtype=values.dtype, device=values.device)
    return torch.where(inside, values, nothing)


def mask_on(values: Tensor, mask: Any) -> Tensor:
    """Return a volume's mask as a bool tensor on the volume's device: true where it is not zero.

    Raises:
        ValueError: The mask has another shape than the volume.
    """
    if tuple(mask.shape) != tuple(values.shape):
        raise ValueError(f"mask has shape {tuple(mask.shape)}, the volume {tuple(values.shape)}")
    inside = mask if isinstance(mask, Tensor) else torch.from_numpy(as_mask(mask))
    return inside.detach().to(values.device).bool()
