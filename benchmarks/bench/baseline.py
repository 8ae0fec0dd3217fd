"""The published pipeline written plainly, to measure against: one textbook call or loop a step, nothing clever.

Every function gives the numbers of its counterpart in this package, which the tests hold it to. What it does follows
the description of Behrendt et al., ISBI 2024, and is how such a step is commonly written: dense three-dimensional
windows, one pass a width; SciPy's median filter; scikit-learn's curves; a loop over slices, components, pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
import torch
from scipy import ndimage
from scipy.spatial.distance import directed_hausdorff
from sklearn.metrics import auc, precision_recall_curve, roc_curve
from torch import Tensor
from torch.nn import functional as F

_STRETCH = (1 / math.sqrt(3) - 1) / 2
_SQUISH = (math.sqrt(3) - 1) / 2
_GRADIENTS = (5, 2, 2, 5, -5, 2, -2, 5, 5, -2, 2, -5, -5, -2, -2, -5)


def read(path: Path) -> np.ndarray:
    """Return a NIfTI file's values as float32."""
    return np.asarray(nib.Nifti1Image.from_filename(path).get_fdata(), dtype=np.float32)


def write(array: np.ndarray, affine: np.ndarray, path: Path) -> None:
    """Write an array as NIfTI."""
    nib.save(nib.Nifti1Image(array.astype(np.float32), affine), path)


def prepare(
    image: np.ndarray, mask: np.ndarray, lesion: np.ndarray, size: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Smooth, crop or pad to ``size``, clip and scale by percentiles in the brain, reduce by 2.

    Args:
        image: (X, Y, Z) at 1 mm.
        mask: Brain mask (X, Y, Z).
        lesion: (X, Y, Z).
        size: Voxels before the reduction, even numbers.

    Returns:
        image, mask and lesion on the grid of ``size`` / 2.
    """
    smooth = sitk.CurvatureFlow(sitk.GetImageFromArray(image), timeStep=0.125, numberOfIterations=3)
    volume = _crop_or_pad(sitk.GetArrayFromImage(smooth), size)
    brain, drawn = _crop_or_pad(mask, size) > 0.5, _crop_or_pad(lesion, size) > 0.5
    low, high = np.percentile(volume[brain], (1, 99))
    scaled = ((np.clip(volume, low, high) - low) / (high - low)).astype(np.float32)
    return _halve(scaled, 3), _halve(brain, 0) > 0.5, _halve(drawn, 0) > 0.5


def _crop_or_pad(array: np.ndarray, size: Sequence[int]) -> np.ndarray:
    result = np.zeros(size, dtype=array.dtype)
    inside, outside = [], []
    for have, want in zip(array.shape, size, strict=True):
        before = math.ceil(abs(want - have) / 2)
        inside.append(slice(before, before + have) if want > have else slice(None))
        outside.append(slice(before, before + want) if want < have else slice(None))
    result[tuple(inside)] = array[tuple(outside)]
    return result


def _halve(array: np.ndarray, order: int) -> np.ndarray:
    size = [length // 2 for length in array.shape]
    return ndimage.affine_transform(
        array.astype(np.float32), np.eye(3) * 2, 0.5, output_shape=size, order=order, mode="mirror"
    )


def noise_field(
    size: tuple[int, int], permutation: Sequence[int], octaves: int = 6, persistence: float = 0.8, frequency: float = 64
) -> np.ndarray:
    """Return one field of simplex noise, (X, Y) float32, pixel by pixel and octave by octave."""
    field = np.zeros(size)
    for x in range(size[0]):
        for y in range(size[1]):
            wavelength, amplitude = frequency, 1.0
            for _ in range(octaves):
                field[x, y] += amplitude * _simplex(y / wavelength, x / wavelength, permutation)
                wavelength, amplitude = wavelength / 2, amplitude * persistence
    return field.astype(np.float32)


def _simplex(x: float, y: float, permutation: Sequence[int]) -> float:
    """Return OpenSimplex noise at a point of the plane (K. Spencer 2014, public domain)."""

    def contribution(i: int, j: int, dx: float, dy: float) -> float:
        attenuation = 2 - dx * dx - dy * dy
        if attenuation <= 0:
            return 0.0
        index = permutation[(permutation[i & 255] + j) & 255] & 14
        return attenuation**4 * (_GRADIENTS[index] * dx + _GRADIENTS[index + 1] * dy)

    stretch = (x + y) * _STRETCH
    xs, ys = x + stretch, y + stretch
    i, j = math.floor(xs), math.floor(ys)
    x_in, y_in = xs - i, ys - j
    squish = (i + j) * _SQUISH
    dx, dy = x - (i + squish), y - (j + squish)
    value = contribution(i + 1, j, dx - 1 - _SQUISH, dy - _SQUISH)
    value += contribution(i, j + 1, dx - _SQUISH, dy - 1 - _SQUISH)
    if x_in + y_in <= 1:
        value += contribution(i, j, dx, dy)
        rest = 1 - x_in - y_in
        if rest <= x_in and rest <= y_in:
            value += contribution(i + 1, j + 1, dx - 1 - 2 * _SQUISH, dy - 1 - 2 * _SQUISH)
        elif x_in > y_in:
            value += contribution(i + 1, j - 1, dx - 1, dy + 1)
        else:
            value += contribution(i - 1, j + 1, dx + 1, dy - 1)
    else:
        value += contribution(i + 1, j + 1, dx - 1 - 2 * _SQUISH, dy - 1 - 2 * _SQUISH)
        rest = 2 - x_in - y_in
        if rest >= x_in and rest >= y_in:
            value += contribution(i, j, dx, dy)
        elif x_in > y_in:
            value += contribution(i + 2, j, dx - 2 - 2 * _SQUISH, dy - 2 * _SQUISH)
        else:
            value += contribution(i, j + 2, dx - 2 * _SQUISH, dy - 2 - 2 * _SQUISH)
    return value / 47


@torch.no_grad()
def reconstruct(model: Any, volume: Tensor, noise: Tensor, levels: Sequence[int]) -> Tensor:
    """Noise all slices, denoise them in one network call, once a noise level; return the mean.

    Args:
        model: A diffusion model with ``q_sample`` and ``unet``.
        volume: (X, Y, Z) in [0, 1], on the model's device.
        noise: (L, Z, 1, X, Y), one set of fields a level.
        levels: Noise levels, counted from 1.

    Returns:
        (X, Y, Z).
    """
    clean = 2 * volume.permute(2, 0, 1)[:, None] - 1
    found = []
    for level, fields in zip(levels, noise, strict=True):
        t = torch.full((len(clean),), level - 1, device=volume.device)
        found.append((model.unet(model.q_sample(clean, t, fields), t) + 1) / 2)
    return torch.stack(found).mean(0)[:, 0].permute(1, 2, 0)


def ssim_map(reconstruction: Tensor, image: Tensor, sigma: float) -> Tensor:
    """Return the SSIM map (X, Y, Z) of one Gaussian width, by one dense three-dimensional window."""
    half = math.floor(3.5 * sigma + 0.5)
    offsets = torch.arange(-half, half + 1, dtype=image.dtype, device=image.device)
    line = torch.exp(-0.5 * (offsets / sigma) ** 2)
    line = line / line.sum()
    kernel = (line[:, None, None] * line[None, :, None] * line)[None, None]
    x, y = reconstruction, image
    stack = F.pad(torch.stack([x, y, x * x, y * y, x * y])[:, None], (half,) * 6, mode="reflect")
    # TF32, which cuDNN may take, has too few bits for a variance
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        mean_x, mean_y, xx, yy, xy = F.conv3d(stack, kernel)[:, 0]
    data_range = max(x.max() - x.min(), y.max() - y.min())
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * (xy - mean_x * mean_y) + c2)
    return similarity / ((mean_x**2 + mean_y**2 + c1) * (xx + yy - mean_x**2 - mean_y**2 + c2))


def ssim_maps(reconstruction: Tensor, image: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Return the SSIM maps of all widths, (K, X, Y, Z), one after the other."""
    return torch.stack([ssim_map(reconstruction, image, sigma) for sigma in sigmas])


def ssim_ensemble(reconstruction: Tensor, image: Tensor, mask: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Return the anomaly map of the ensemble, (X, Y, Z): one minus the weighted similarity, in the brain."""
    maps = ssim_maps(reconstruction, image, sigmas)
    weights = torch.exp(-maps) / torch.exp(-maps).sum(0)
    return (1 - (weights * maps).sum(0)) * mask


def erode(anomaly: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the map in the brain without its rim, slice by slice."""
    cross = ndimage.generate_binary_structure(2, 1)
    eroded = np.zeros_like(mask)
    for z in range(mask.shape[2]):
        eroded[:, :, z] = ndimage.binary_erosion(mask[:, :, z], cross, iterations=mask.shape[1] // 25)
    return anomaly * eroded


def median(anomaly: np.ndarray) -> np.ndarray:
    """Return the 5 x 5 x 5 median of a map."""
    return ndimage.median_filter(anomaly, 5)


def components(anomaly: np.ndarray, threshold: float) -> np.ndarray:
    """Return where a map is above a threshold, without components of up to 7 voxels, holes filled."""
    everywhere = np.ones((3, 3, 3))
    labels, _ = ndimage.label(anomaly > threshold, everywhere)
    kept = np.zeros(anomaly.shape, dtype=bool)
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        component = labels[box] == label
        if ndimage.binary_fill_holes(component, everywhere).sum() > 7:
            kept[box] |= component
    return kept


def metrics(
    anomaly: np.ndarray,
    predicted: np.ndarray,
    lesion: np.ndarray,
    mask: np.ndarray,
    image: np.ndarray,
    reconstruction: np.ndarray,
) -> dict[str, float]:
    """Return the figures of one case over all voxels of the grid, as the published evaluation lists them.

    Args:
        anomaly: Final map (X, Y, Z).
        predicted: Where it is above the data set's threshold, without small components.
        lesion: The drawn lesion.
        mask: Brain mask.
        image: The scan.
        reconstruction: The scan as the model would have it.
    """
    truth, scores = lesion.flatten(), anomaly.flatten()
    false_positive_rate, true_positive_rate, _ = roc_curve(truth, scores)
    precision, recall, _ = precision_recall_curve(truth, scores)
    found = {
        "auroc": auc(false_positive_rate, true_positive_rate),
        "average_precision": -np.sum(np.diff(recall) * precision[:-1]),
        "greedy_best_dice": _greedy_best_dice(anomaly, lesion),
        "scan_score": anomaly[mask].mean(dtype=np.float64),
    }
    tp, fp = (predicted & lesion).sum(), (predicted & ~lesion).sum()
    tn, fn = (~predicted & ~lesion).sum(), (~predicted & lesion).sum()
    found |= {"dice": 2 * tp / (2 * tp + fp + fn), "precision": tp / (tp + fp), "recall": tp / (tp + fn)}
    found |= {"specificity": tn / (tn + fp), "accuracy": (tp + tn) / (tp + fp + tn + fn)}
    ours, theirs = np.argwhere(predicted), np.argwhere(lesion)
    found["hausdorff"] = max(directed_hausdorff(ours, theirs)[0], directed_hausdorff(theirs, ours)[0])
    for name, error in (("l1", np.abs(image - reconstruction)), ("l2", (image - reconstruction) ** 2)):
        found[name] = error.mean(dtype=np.float64)
        found[f"{name}_lesion"] = error[lesion].mean(dtype=np.float64)
        found[f"{name}_healthy"] = error[~lesion].mean(dtype=np.float64)
    return {name: float(value) for name, value in found.items()} | _slice_figures(anomaly, predicted, lesion, mask)


def _dice(prediction: np.ndarray, lesion: np.ndarray) -> float:
    return float(2 * (prediction & lesion).sum() / (prediction.sum() + lesion.sum()))


def _greedy_best_dice(anomaly: np.ndarray, lesion: np.ndarray) -> float:
    low, high, best = 0.0, float(anomaly.max()), -math.inf
    for _ in range(10):
        quarter = (high - low) / 4
        lower = _dice(anomaly > low + quarter, lesion)
        upper = _dice(anomaly > high - quarter, lesion)
        best = max(best, lower, upper)
        middle = low + 2 * quarter
        low, high = (middle, high) if upper >= lower else (low, middle)
    return best


def _slice_figures(
    anomaly: np.ndarray, predicted: np.ndarray, lesion: np.ndarray, mask: np.ndarray
) -> dict[str, float]:
    """Return the means over lesion slices, and how well a slice's mean score tells them, along the first axis."""
    overlaps: dict[str, list[float]] = {"dice": [], "precision": [], "recall": []}
    means, holds_lesion = [], []
    for x in range(len(anomaly)):
        called, drawn, brain = predicted[x], lesion[x], mask[x]
        if brain.any():
            means.append(anomaly[x][brain].mean(dtype=np.float64))
            holds_lesion.append(bool(drawn.any()))
        if drawn.any():
            both = (called & drawn).sum()
            overlaps["dice"].append(_dice(called, drawn))
            overlaps["recall"].append(both / drawn.sum())
            if called.any():
                overlaps["precision"].append(both / called.sum())
    found = {f"slice_{name}": float(np.mean(values)) for name, values in overlaps.items()}
    false_positive_rate, true_positive_rate, _ = roc_curve(holds_lesion, means)
    precision, recall, _ = precision_recall_curve(holds_lesion, means)
    found["slice_auroc"] = float(auc(false_positive_rate, true_positive_rate))
    found["slice_average_precision"] = float(-np.sum(np.diff(recall) * precision[:-1]))
    return found
