"""Places in the atlas: by geometry, and by what is known of the MNI space."""

from __future__ import annotations

import numpy as np
import pytest

from brainuad.data.placement import ATLAS_CENTRE, atlas_brain
from brainuad.data.regions import atlas_regions, mni_of, region_at, region_names

# centres of mass in MNI mm in the AAL atlas (Tzourio-Mazoyer et al. 2002)
AAL = {
    "left hippocampus": (-25.0, -20.7, -10.1),
    "right hippocampus": (29.2, -19.8, -10.3),
    "left thalamus": (-10.9, -17.6, 8.0),
    "right putamen": (27.8, 4.9, 2.5),
}


def points_of(name: str) -> np.ndarray:
    """Return the voxels of a region in atlas mm."""
    regions = atlas_regions()
    (label,) = (label for label, known in region_names().items() if known == name)
    return np.argwhere(regions.array == label) @ regions.affine[:3, :3].T + regions.affine[:3, 3]


def test_every_label_has_a_name_and_every_name_a_place():
    assert set(np.unique(atlas_regions().array)) - {0} == set(region_names())
    assert len(set(region_names().values())) == len(region_names())


def test_sides_are_the_patients():
    for name in region_names().values():
        if name.startswith(("left", "right")):
            side = np.sign(points_of(name).mean(0)[0] - ATLAS_CENTRE[0])
            assert side == (1 if name.startswith("right") else -1), name


def test_right_and_left_mirror_each_other():
    names = [name.removeprefix("right ") for name in region_names().values() if name.startswith("right")]
    for name in names:
        right, left = (points_of(f"{side} {name}").mean(0) - ATLAS_CENTRE for side in ("right", "left"))
        assert np.abs(right - left * (-1, 1, 1)).max() < 8, name


def test_tissues_are_as_bright_as_they_should_be():
    brain = atlas_brain()

    def brightness(name: str) -> float:
        inverse = np.linalg.inv(brain.affine)
        indices = np.rint(points_of(name) @ inverse[:3, :3].T + inverse[:3, 3]).astype(int)
        return float(np.median(brain.array[tuple(indices.T)]))

    for side in ("left", "right"):
        fluid, grey, white = (
            brightness(f"{side} {name}") for name in ("lateral ventricle", "putamen", "frontal white matter")
        )
        assert fluid < grey < white


def test_neighbours_lie_where_anatomy_says():
    def place(name: str) -> np.ndarray:
        return points_of(name).mean(0)

    assert place("right frontal pole")[1] > place("right precentral gyrus")[1]
    assert place("right precentral gyrus")[1] > place("right postcentral gyrus")[1]
    assert place("right postcentral gyrus")[1] > place("right occipital pole")[1]
    assert place("left cerebellar cortex")[2] < place("left inferior temporal gyrus")[2]
    assert place("left inferior temporal gyrus")[2] < place("left superior temporal gyrus")[2]
    assert place("left superior temporal gyrus")[2] < place("left superior frontal gyrus")[2]


@pytest.mark.parametrize("name", AAL)
def test_deep_structures_lie_where_another_atlas_has_them(name):
    assert np.linalg.norm(mni_of(points_of(name).mean(0)) - AAL[name]) < 6


def test_the_middle_is_the_middle():
    for name in ("corpus callosum", "brain stem", "third ventricle"):
        assert abs(mni_of(points_of(name).mean(0))[0]) < 3


def test_the_region_with_most_points_has_them():
    thalamus, putamen = points_of("left thalamus"), points_of("left putamen")
    assert region_at(np.vstack([thalamus[:10], putamen[:9]])) == "left thalamus"
    assert region_at(np.vstack([thalamus[:9], putamen[:10]])) == "left putamen"
    outside = np.array([[1000.0, 0, 0], np.subtract(ATLAS_CENTRE, (200, 0, 0))])
    assert region_at(outside) == ""
    assert region_at(np.vstack([outside, thalamus[:1]])) == "left thalamus"
    assert region_at(np.empty((0, 3))) == ""
