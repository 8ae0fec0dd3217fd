from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from brainuad.data.placement import atlas_brain
from brainuad.data.regions import SRI24_TO_MNI
from brainuad.data.volume import Volume
from brainuad.simulate import shipped_outlines
from brainuad.simulate.stroke import outline_coverage

DEMO = Path(__file__).parents[2] / "src/brainuad/assets/demo"


@pytest.fixture
def image() -> Volume:
    return Volume.load(DEMO / "IXI067_t1.nii.gz")


def ball(centre_in_atlas: tuple[float, float, float], radius: float) -> Volume:
    """A stroke outline in MNI space, given where it should come to lie in the atlas."""
    affine = np.diag([1.0, 1, 1, 1])
    affine[:3, 3] = (-78, -112, -50)
    x, y, z = np.indices((157, 189, 136))
    centre = (np.linalg.inv(affine) @ SRI24_TO_MNI @ [*centre_in_atlas, 1])[:3]
    return Volume.from_array(sum((i - c) ** 2 for i, c in zip((x, y, z), centre, strict=True)) < radius**2, affine)


def test_an_outline_lies_where_it_should(image):
    place = (-90.0, 110.0, 80.0)
    covered = outline_coverage(ball(place, 9), image)
    assert covered.max() == 1
    found = image.affine @ [*np.average(np.argwhere(covered > 0), axis=0, weights=covered[covered > 0]), 1]
    np.testing.assert_allclose(found[:3], place, atol=0.5)


def test_real_outlines_lie_in_the_brain():
    atlas = atlas_brain()
    brain = ndimage.binary_fill_holes(atlas.array > 0)
    with shipped_outlines() as folder:
        coverages = [outline_coverage(Volume.load(path), atlas) for path in sorted(folder.glob("*.nii.gz"))[::8]]
    inside = [coverage[brain].sum() / coverage.sum() for coverage in coverages]
    assert len(inside) > 20
    assert np.mean(inside) > 0.95


def test_size_scales_an_outline_about_its_centre(image):
    outline = ball((-90.0, 110.0, 80.0), 9)
    one, two = (outline_coverage(outline, image, size=size) for size in (1.0, 2.0))
    assert two.sum() / one.sum() == pytest.approx(2, rel=0.03)
    index = np.indices(one.shape).reshape(3, -1)
    centres = [np.average(index, axis=1, weights=part.ravel()) for part in (one, two)]
    np.testing.assert_allclose(*centres, atol=0.1)
    # MNI152 space is larger than the atlas.
    assert one.sum() * 8 == pytest.approx((outline.array > 0).sum() / np.linalg.det(SRI24_TO_MNI[:3, :3]), rel=0.05)
