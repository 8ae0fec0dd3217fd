"""Masks and intensities of the tissues of one healthy brain."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import ndimage

# Labels of the MUSE parcellation (Doshi et al., NeuroImage 2016; DLMUSE writes the same), right and left.
LATERAL_VENTRICLES = (49, 50, 51, 52)  # with the inferior horns
CSF = (1, 4, 11, 46, *LATERAL_VENTRICLES)  # outer CSF, third and fourth ventricle
WHITE_MATTER = (81, 82, 83, 84, 85, 86, 87, 88)  # frontal, occipital, parietal, temporal
CAPSULE_AND_CALLOSUM = (91, 92, 93, 94, 95)
FIRST_CORTEX = 100


@dataclass(frozen=True, eq=False)
class Tissues:
    """Tissues of one brain on its image's grid; every array is ``(X, Y, Z)`` bool."""

    spacing: tuple[float, float, float]  # voxel size in mm
    brain: np.ndarray
    white: np.ndarray  # cerebral white matter of the lobes
    tracts: np.ndarray  # internal capsules and corpus callosum
    cortex: np.ndarray
    ventricles: np.ndarray  # lateral ventricles
    csf: np.ndarray  # all cerebrospinal fluid, the ventricles too

    @classmethod
    def from_labels(cls, labels: np.ndarray, brain: np.ndarray, spacing: tuple[float, float, float]) -> Tissues:
        """Make the tissue masks from a MUSE parcellation.

        Args:
            labels: ``(X, Y, Z)`` whole numbers.
            brain: ``(X, Y, Z)`` bool.
            spacing: Voxel size in mm.

        Raises:
            ValueError: There is no white matter, cortex or lateral ventricle, so the labels are damaged or not MUSE's.
        """
        labels = np.rint(labels).astype(np.int32)

        def of(*wanted: int) -> np.ndarray:
            return np.isin(labels, wanted) & brain

        tissues = cls(
            spacing,
            brain,
            of(*WHITE_MATTER),
            of(*CAPSULE_AND_CALLOSUM),
            (labels >= FIRST_CORTEX) & brain,
            of(*LATERAL_VENTRICLES),
            of(*CSF) | (brain & (labels == 0)),
        )
        for name in ("white", "cortex", "ventricles"):
            if not getattr(tissues, name).any():
                raise ValueError(f"its labels name no voxel of {name}: MUSE labels are needed")
        return tissues

    @property
    def voxel_mm(self) -> float:
        """Mean length of a voxel in mm."""
        return float(np.mean(self.spacing))

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in mL."""
        return float(np.prod(self.spacing)) / 1000

    @cached_property
    def all_white(self) -> np.ndarray:
        """White matter of the lobes and of the tracts."""
        return self.white | self.tracts

    @cached_property
    def parenchyma(self) -> np.ndarray:
        """Brain without CSF: the tissue that lesions can lie in."""
        return self.brain & ~self.csf

    @cached_property
    def from_ventricles(self) -> np.ndarray:
        """Distance of every voxel from the lateral ventricles in mm, 0 in them."""
        return ndimage.distance_transform_edt(~self.ventricles, self.spacing)

    @cached_property
    def from_cortex(self) -> np.ndarray:
        """Distance of every voxel from the cortex in mm, 0 in it."""
        return ndimage.distance_transform_edt(~self.cortex, self.spacing)

    @cached_property
    def from_edge(self) -> np.ndarray:
        """Depth of every voxel below the brain's surface in mm, 0 outside."""
        return ndimage.distance_transform_edt(np.pad(self.brain, 1), self.spacing)[1:-1, 1:-1, 1:-1]


@dataclass(frozen=True)
class Levels:
    """Intensities of one scan, in its unit."""

    white: float  # median of white matter, away from its borders
    grey: float  # median of the cortex
    csf: float  # median of the middle of the lateral ventricles
    noise: float  # standard deviation of the noise in white matter


def levels_of(image: np.ndarray, tissues: Tissues) -> Levels:
    """Measure the tissues' intensities in a bias-corrected scan of any contrast, ``(X, Y, Z)``."""
    white = ndimage.binary_erosion(tissues.white)
    white = white if white.any() else tissues.white
    depth = ndimage.distance_transform_edt(tissues.ventricles)
    # small ventricles are mostly border
    middle = tissues.ventricles & (depth >= np.percentile(depth[tissues.ventricles], 70))
    # White noise minus its blur by one voxel has 0.97 of its standard deviation.
    fine = (image - ndimage.gaussian_filter(image, 1.0))[white]
    deviation = 1.4826 * float(np.median(np.abs(fine - np.median(fine))))
    return Levels(
        float(np.median(image[white])),
        float(np.median(image[tissues.cortex])),
        float(np.median(image[middle])),
        deviation,
    )
