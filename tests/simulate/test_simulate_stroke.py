from pathlib import Path

import numpy as np
import pytest

from brainuad.data.volume import Volume
from brainuad.simulate import ATLAS_TO_MNI, csf_of, stroke
from brainuad.simulate.stroke import outline_coverage

DEMO = Path(__file__).parents[2] / "src/brainuad/assets/demo"


@pytest.fixture
def healthy() -> tuple[Volume, np.ndarray]:
    return Volume.load(DEMO / "IXI067_t1.nii.gz"), Volume.load(DEMO / "IXI067_mask.nii.gz").array > 0


def ball(centre_in_atlas: tuple[float, float, float], radius: float) -> Volume:
    """A stroke outline in MNI space, given where it should come to lie in the atlas."""
    affine = np.diag([1.0, 1, 1, 1])
    affine[:3, 3] = (-78, -112, -50)
    x, y, z = np.indices((157, 189, 136))
    centre = (np.linalg.inv(affine) @ ATLAS_TO_MNI @ [*centre_in_atlas, 1])[:3]
    return Volume.from_array(sum((i - c) ** 2 for i, c in zip((x, y, z), centre, strict=True)) < radius**2, affine)


def test_the_stroke_lies_where_the_outline_says_and_nothing_else_changes(healthy):
    image, mask = healthy
    place = (-90.0, 110.0, 80.0)
    sick, lesion = stroke(image, mask, ball(place, 9), seed=1)
    found = image.affine @ [*np.argwhere(lesion).mean(0), 1]
    np.testing.assert_allclose(found[:3], place, atol=1.0)
    changed = sick != image.array
    assert (lesion <= mask).all()
    assert changed[lesion].mean() > 0.9
    distance_ok = np.linalg.norm(np.argwhere(changed) - np.argwhere(lesion).mean(0), axis=1).max() < 9
    assert distance_ok  # voxels of 2 mm: the ball of 9 mm and its soft border
    csf = csf_of(image.array, mask)
    assert abs(sick[lesion].mean() - csf.mean) < 2 * csf.deviation + 5
    assert sick[lesion].mean() < 0.6 * image.array[lesion].mean()


def test_same_seed_same_stroke(healthy):
    image, mask = healthy
    outline = ball((-90.0, 110.0, 80.0), 6)
    first, second, other = (stroke(image, mask, outline, seed=seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()


def test_a_mask_without_inside_is_refused(healthy):
    image, mask = healthy
    thin = np.zeros_like(mask)
    thin[10] = True
    with pytest.raises(ValueError, match="too thin"):
        csf_of(image.array, thin)


def test_size_scales_an_outline_about_its_centre(healthy):
    image, _ = healthy
    outline = ball((-90.0, 110.0, 80.0), 9)
    one, two = (outline_coverage(outline, image, size=size) for size in (1.0, 2.0))
    assert two.sum() / one.sum() == pytest.approx(2, rel=0.03)
    index = np.indices(one.shape).reshape(3, -1)
    centres = [np.average(index, axis=1, weights=part.ravel()) for part in (one, two)]
    np.testing.assert_allclose(*centres, atol=0.1)
    # MNI152 space is smaller than the atlas.
    assert one.sum() * 8 == pytest.approx((outline.array > 0).sum() / np.linalg.det(ATLAS_TO_MNI[:3, :3]), rel=0.05)
