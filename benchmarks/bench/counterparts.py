"""What the baseline's figures are compared with, and other libraries that compute SSIM maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from torch import Tensor

from brainuad.evaluation import (
    confusion,
    hausdorff,
    reconstruction_errors,
    scan_score,
    slice_detection,
    slice_overlap,
    threshold_curve,
)


def published_figures(
    anomaly: Any, predicted: Any, lesion: np.ndarray, mask: np.ndarray, image: np.ndarray, reconstruction: np.ndarray
) -> dict[str, float]:
    """Return the figures of `baseline.metrics`, by the functions of this package."""
    curve, counts = threshold_curve(anomaly, lesion), confusion(predicted, lesion)
    overlap = slice_overlap(predicted, lesion, axis=0)
    detection = slice_detection(anomaly, lesion, mask, axis=0)
    return {
        "auroc": curve.auroc(),
        "average_precision": curve.average_precision(),
        "greedy_best_dice": curve.greedy_best_dice()[0],
        "scan_score": scan_score(anomaly, mask),
        **{name: getattr(counts, name) for name in ("dice", "precision", "recall", "specificity", "accuracy")},
        "hausdorff": hausdorff(predicted, lesion),
        **reconstruction_errors(image, reconstruction, lesion),
        **{f"slice_{name}": value for name, value in (overlap | detection).items()},
    }


def other_ssim_maps(reconstruction: Tensor, image: Tensor, sigmas: Sequence[float]) -> dict[str, Callable[[], Any]]:
    """Return the SSIM maps of other libraries, of those that are installed.

    Theirs differ from ours near the borders; torchmetrics' differ everywhere, since it computes one width's padding
    from another's window.
    """
    data_range = max(float(volume.max() - volume.min()) for volume in (reconstruction, image))
    others: dict[str, Callable[[], Any]] = {}
    with suppress(ImportError):
        from skimage.metrics import structural_similarity

        arrays = reconstruction.numpy(), image.numpy()
        others["scikit-image"] = lambda: [
            structural_similarity(
                *arrays,
                gaussian_weights=True,
                sigma=sigma,
                use_sample_covariance=False,
                data_range=data_range,
                full=True,
            )
            for sigma in sigmas
        ]
    with suppress(ImportError):
        from torchmetrics.functional.image import structural_similarity_index_measure

        pair = reconstruction[None, None], image[None, None]
        others["torchmetrics"] = lambda: [
            structural_similarity_index_measure(*pair, sigma=sigma, data_range=data_range, return_full_image=True)
            for sigma in sigmas
        ]
    return others
