"""Simulate a subject's T2 or FLAIR scan from the T1 scan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from brainuad.simulate.lesion import TEXTURE_VOXELS, smooth_noise
from brainuad.simulate.tissue import Levels, Tissues

WHITE = 100.0  # white matter's intensity; the others are relative to it


@dataclass(frozen=True)
class Contrast:
    """Ranges of a contrast's intensities, relative to white matter."""

    grey: tuple[float, float]
    csf: tuple[float, float]
    fluid: float | None = None  # of the fluid in a lesion; None if it is that of CSF


CONTRASTS = {
    # From what the two MSLUB patients' T2 scans show (grey 1.3 and 1.5, CSF 2.7 and 2.9) to what the spin-echo
    # equation gives at 3 T with TR 5.7 s and TE 100 ms (1.6 and 3.7), with proton densities 0.7, 0.82 and 1 and the
    # relaxation times of Wansapura et al., J Magn Reson Imaging 9:531-538, 1999.
    "t2": Contrast(grey=(1.35, 1.6), csf=(2.7, 3.5)),
    # Five validation patients of BraTS 2021, far from their tumours: grey 1.01 to 1.07 with partial volume, the
    # darkest percent of what is dark on T1 0.2 to 0.6. Only free fluid is suppressed.
    "flair": Contrast(grey=(1.03, 1.25), csf=(0.15, 0.5), fluid=1.8),
}
NOISE = (0.025, 0.05)  # standard deviation, in white matter's unit
BIAS = 0.03  # standard deviation of the bias field that remains after correction
# width of the rim that brain extraction darkens; in real T2 scans 2 to 10 % of the brain is dark
RIM_MM = (2.0, 6.0)
BLUR_VOXELS = 0.45  # smooths the T1 scan's noise, which the steep contrast of CSF would amplify


def simulated_contrast(
    image: np.ndarray, tissues: Tissues, levels: Levels, modality: str, rng: np.random.Generator
) -> tuple[np.ndarray, dict[str, Any]]:
    """Turn a T1 scan's contrast into that of T2 or FLAIR.

    A voxel's T1 intensity gives the mixture of tissues in it (grey with white matter, or CSF with grey matter), and is
    replaced by the same mixture of the other contrast's intensities. Where white matter meets a ventricle, the mixture
    is of these two. Noise, a weak bias field and the dark rim of brain extraction are added. Contrast that T1 does not
    show is missing: most iron in the basal ganglia, flow, and vessels that are dark on both.

    Args:
        image: ``(X, Y, Z)`` bias-corrected T1 scan with these ``tissues`` and ``levels``.
        modality: One of ``CONTRASTS``.
        rng: Source of contrast, noise and bias.

    Returns:
        ``(X, Y, Z)`` float32, white matter at 100, zero outside the brain; and the drawn values.
    """
    contrast = CONTRASTS[modality]
    grey, csf, noise = (float(rng.uniform(*limits)) for limits in (contrast.grey, contrast.csf, NOISE))
    smooth = ndimage.gaussian_filter(image, BLUR_VOXELS)
    # Darker than CSF on T1 are dura, air and fast flow: dark on T2 and FLAIR as well.
    known = [0.0, 0.6 * levels.csf, levels.csf, levels.grey, levels.white]
    signal = np.interp(smooth, known, [0.2 * csf, csf, csf, grey, 1.0])
    share = np.clip((levels.white - smooth) / (levels.white - levels.csf), 0, 1)
    margin = tissues.ventricles | (ndimage.binary_dilation(tissues.ventricles) & tissues.all_white)
    signal = np.where(margin, 1 + share * (csf - 1), signal)
    voxel = tissues.voxel_mm
    field = np.exp(BIAS * smooth_noise(image.shape, rng, 40.0 / voxel))
    reach = rng.uniform(*RIM_MM) * np.exp(0.6 * smooth_noise(image.shape, rng, 8.0 / voxel))
    signal = signal * field * np.clip((tissues.from_edge - voxel / 2) / reach, 0, 1)
    signal = signal + noise * smooth_noise(image.shape, rng, TEXTURE_VOXELS)
    array = (WHITE * np.maximum(signal, 0) * tissues.brain).astype(np.float32)
    return array, {"grey": grey, "csf": csf, "noise": noise}
