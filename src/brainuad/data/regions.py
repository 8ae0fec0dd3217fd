"""Places in the SRI24 atlas by name, and in MNI coordinates."""

from __future__ import annotations

import csv
from functools import cache
from importlib.resources import as_file, files

import numpy as np

from brainuad.data.volume import Volume

# SRI24 mm to mm of MNI152 (ICBM 2009c asymmetric), by benchmarks/register_mni.py; docs/scoring.md says how exact it is.
SRI24_TO_MNI = np.array(
    [
        [1.0727, 0.0025, 0.0180, 125.5702],
        [0.0352, 1.0193, 0.1937, -138.2481],
        [-0.0073, -0.2112, 1.1190, -54.9443],
        [0.0, 0.0, 0.0, 1.0],
    ]
)


@cache
def atlas_regions() -> Volume:
    """Return the labels of the regions of `region_names` in the SRI24 atlas, at 2 mm, 0 in none.

    Every voxel has the MUSE label that most of 109 healthy adults have there, registered affinely; sulcal fluid belongs
    to the nearest region.
    """
    with as_file(files("brainuad.assets") / "regions_2mm.nii.gz") as path:
        return Volume.load(path)


@cache
def region_names() -> dict[int, str]:
    """Return the names of the regions by label: "left thalamus", "corpus callosum"."""
    text = (files("brainuad.assets") / "regions.csv").read_text(encoding="utf-8")
    return {int(row["label"]): row["name"] for row in csv.DictReader(text.splitlines())}


def region_at(points: np.ndarray) -> str:
    """Return the name of the region that holds most of some points, ``(N, 3)`` mm of the atlas; "" where none does."""
    regions = atlas_regions()
    to_index = np.linalg.inv(regions.affine)
    indices = np.rint(points @ to_index[:3, :3].T + to_index[:3, 3]).astype(int)
    inside = ((indices >= 0) & (indices < regions.array.shape)).all(1)
    labels = regions.array[tuple(indices[inside].T)].astype(int)
    counts = np.bincount(labels, minlength=1)
    counts[0] = 0
    return region_names()[int(counts.argmax())] if counts.any() else ""


def mni_of(point: np.ndarray) -> np.ndarray:
    """Return MNI152 mm ``(3,)`` of a point ``(3,)`` in mm of the atlas."""
    return SRI24_TO_MNI[:3, :3] @ point + SRI24_TO_MNI[:3, 3]
