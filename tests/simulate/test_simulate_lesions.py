from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from brainuad.simulate.contrast import CONTRASTS, simulated_contrast
from brainuad.simulate.deform import jacobian, push, warp
from brainuad.simulate.hyperintensities import wmh
from brainuad.simulate.lesion import Layer, Lesion, above, cover, paint, smooth_noise
from brainuad.simulate.spots import ms
from brainuad.simulate.tissue import Levels, Tissues, levels_of
from brainuad.simulate.tumour import tumour

SPACING = (4.0, 4.0, 4.0)
KINDS = {"ms": ms, "wmh": wmh, "tumour": tumour}


@pytest.fixture(scope="module")
def brain(labelled_brain) -> tuple[np.ndarray, Tissues, Levels]:
    image, mask, labels = labelled_brain
    tissues = Tissues.from_labels(labels.array, mask.array > 0, image.spacing)
    return image.array, tissues, levels_of(image.array, tissues)


def simulated(brain, kind: str, seed: int = 0, **options: float) -> tuple[Lesion, np.ndarray, np.ndarray]:
    image, tissues, levels = brain
    rng = np.random.default_rng(seed)
    lesion = KINDS[kind](tissues, rng, modality="t1", **options)
    return lesion, paint(image, lesion, levels, tissues.brain, rng), lesion.truth()


def test_tissues_lie_where_anatomy_has_them(brain):
    _, tissues, levels = brain
    assert levels.csf < levels.grey < levels.white
    assert 0 < levels.noise < 0.2 * levels.white
    assert not (tissues.white & (tissues.cortex | tissues.csf)).any()
    assert (tissues.csf[tissues.ventricles]).all()
    volumes = {name: getattr(tissues, name).sum() * tissues.voxel_ml for name in ("white", "cortex")}
    assert 300 < volumes["white"] < 700
    assert 350 < volumes["cortex"] < 800
    assert tissues.from_ventricles[tissues.ventricles].max() == 0
    # The ventricles lie in the middle, the cortex at the surface.
    assert np.median(tissues.from_edge[tissues.cortex]) < np.median(tissues.from_edge[tissues.ventricles])


def test_labels_of_another_parcellation_are_refused():
    with pytest.raises(ValueError, match="MUSE"):
        Tissues.from_labels(np.full((4, 4, 4), 2), np.ones((4, 4, 4), bool), SPACING)


@pytest.mark.parametrize("kind", KINDS)
def test_lesions_are_dark_on_t1_and_in_brain_tissue(brain, kind):
    image, tissues, levels = brain
    lesion, sick, truth = simulated(brain, kind)
    inside = truth > 0
    before = image if lesion.displacement is None else warp(image, lesion.displacement)
    assert inside.any()
    assert not inside[~tissues.brain].any()
    np.testing.assert_array_equal(sick[~tissues.brain], image[~tissues.brain])
    contrast = (before[inside] - sick[inside]).mean() / (levels.white - levels.csf)
    assert 0.05 < contrast < 0.7
    if kind != "tumour":
        assert not inside[tissues.csf].any()
        untouched = lesion.layers[0].coverage == 0
        np.testing.assert_array_equal(sick[untouched], image[untouched])


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_lesion(brain, kind):
    first, again, other = (simulated(brain, kind, seed)[1] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("kind", KINDS)
def test_contrast_and_size_do_what_they_say(brain, kind):
    image, *_ = brain
    truths = [simulated(brain, kind, size=size)[2] for size in (0.5, 1.0, 2.0)]
    volumes = [int((truth > 0).sum()) for truth in truths]
    assert volumes[0] < volumes[1] < volumes[2]
    if kind == "wmh":
        assert volumes[2] / volumes[1] == pytest.approx(2, rel=0.15)
    weak, usual = (simulated(brain, kind, contrast=contrast) for contrast in (0.5, 1.0))
    np.testing.assert_array_equal(weak[2], usual[2])
    inside = usual[2] == (1 if kind != "tumour" else 2)  # oedema changes tissue, as the others do
    before = image if usual[0].displacement is None else warp(image, usual[0].displacement)
    changes = [float((before[inside] - sick[inside]).mean()) for sick in (weak[1], usual[1])]
    assert changes[0] / changes[1] == pytest.approx(0.5, abs=0.15)


def test_on_t2_lesions_are_bright(brain):
    image, tissues, _ = brain
    flipped = np.where(tissues.brain, image.max() - image, 0).astype(np.float32)
    rng = np.random.default_rng(0)
    lesion = ms(tissues, rng, modality="t2")
    levels = levels_of(flipped, tissues)
    sick = paint(flipped, lesion, levels, tissues.brain, rng)
    inside = lesion.truth() > 0
    assert sick[inside].mean() > flipped[inside].mean() + 0.1 * (levels.csf - levels.white)


def test_simulated_t2_has_its_tissues_the_other_way_round(brain):
    image, tissues, levels = brain
    t2, drawn = simulated_contrast(image, tissues, levels, "t2", np.random.default_rng(0))
    # The rim fades, as where brain extraction cut.
    depth = ndimage.distance_transform_edt(np.pad(tissues.brain, 1), sampling=tissues.spacing)[1:-1, 1:-1, 1:-1]
    deep = depth > 15
    found = levels_of(t2, replace(tissues, cortex=tissues.cortex & deep, csf=tissues.csf & deep))
    assert t2[tissues.brain & (depth < 5)].mean() < 0.85 * t2[deep].mean()
    assert found.white == pytest.approx(100, rel=0.06)
    assert found.grey / found.white == pytest.approx(drawn["grey"], rel=0.2)  # where it fades far in, darker
    assert found.csf / found.white == pytest.approx(drawn["csf"], rel=0.12)
    assert 0.5 * drawn["noise"] < found.noise / found.white < 3 * drawn["noise"]
    assert not t2[~tissues.brain].any()
    # The subject's anatomy is kept: inside the brain, dark becomes bright.
    assert np.corrcoef(t2[deep], image[deep])[0, 1] < -0.7
    again, _ = simulated_contrast(image, tissues, levels, "t2", np.random.default_rng(0))
    np.testing.assert_array_equal(t2, again)


def test_simulated_flair_has_dark_csf_and_bright_lesions(brain):
    image, tissues, levels = brain
    flair, drawn = simulated_contrast(image, tissues, levels, "flair", np.random.default_rng(0))
    found = levels_of(flair, tissues)
    assert found.csf / found.white == pytest.approx(drawn["csf"], abs=0.15)
    assert found.csf < 0.7 * found.white < found.grey
    lesion = ms(tissues, np.random.default_rng(0), modality="flair")
    fluid = replace(found, csf=CONTRASTS["flair"].fluid * found.white)
    sick = paint(flair, lesion, fluid, tissues.brain, np.random.default_rng(0))
    inside = lesion.truth() > 0
    assert sick[inside].mean() > flair[inside].mean() + 0.15 * found.white


def test_ms_lies_at_its_sites(brain):
    _, tissues, _ = brain
    lesion = simulated(brain, "ms", seed=3)[0]
    sites = lesion.parameters["sites"]
    assert sum(sites.values()) == len(lesion.parameters["diameters_mm"])
    assert all(3.0 <= diameter <= 10.0 for diameter in lesion.parameters["diameters_mm"])
    white = tissues.white | tissues.tracts
    assert lesion.layers[0].coverage[white].sum() > 0.6 * lesion.layers[0].coverage.sum()
    # Lesions are drawn nearer to the ventricles than white matter is on average.
    weight = lesion.layers[0].coverage[white]
    near = np.average(tissues.from_ventricles[white], weights=weight)
    assert near < tissues.from_ventricles[white].mean()


@pytest.mark.parametrize("seed", range(4))
def test_ms_at_the_surface_stays_in_the_brain(brain, seed):
    _, tissues, _ = brain
    lesion = simulated(brain, "ms", seed=seed, size=8.0)[0]
    assert not lesion.layers[0].coverage[~tissues.parenchyma].any()


def test_hyperintensities_have_the_drawn_volume_and_spare_the_cortex(brain):
    _, tissues, _ = brain
    lesion = simulated(brain, "wmh", seed=4)[0]
    wanted = lesion.parameters["wanted_ml"]
    coverage = lesion.layers[0].coverage
    assert coverage.sum() * tissues.voxel_ml == pytest.approx(wanted, rel=0.25)
    assert (coverage[tissues.cortex] < 0.1).all()
    assert np.average(tissues.from_ventricles, weights=coverage) < 12


def test_a_tumour_has_a_core_in_a_rim_and_oedema_around(brain):
    _, tissues, _ = brain
    lesion = simulated(brain, "tumour", seed=1, size=2.0)[0]
    truth = lesion.truth()
    core, oedema, rim = (truth == label for label in (1, 2, 3))
    assert core.any()
    assert oedema.any()
    assert rim.any()
    # Nothing but rim (or the brain's own CSF) lies against the core.
    around = ndimage.binary_dilation(core) & ~core & (truth > 0)
    assert (around & rim).sum() > 0.9 * around.sum()
    volume = (truth > 0).sum() * tissues.voxel_ml
    assert volume == pytest.approx(lesion.parameters["wanted_ml"], rel=0.35)
    white = warp(tissues.white | tissues.tracts, lesion.displacement, order=1)
    assert white[oedema].mean() > 0.6
    assert jacobian(lesion.displacement).min() > 0
    assert lesion.parameters["least_jacobian"] > 0


@settings(max_examples=15, deadline=None)
@given(strength=st.floats(0.05, 0.55), radius=st.floats(4.0, 30.0), place=st.tuples(*[st.integers(6, 17)] * 3))
def test_a_push_never_folds_and_leaves_the_surface(strength, radius, place):
    ball = np.linalg.norm(np.indices((24, 24, 24)) - 11.5, axis=0) < 11
    depth = ndimage.distance_transform_edt(ball, sampling=2.0)
    displacement = push(np.array(place), radius, strength, depth, (2.0, 2.0, 2.0))
    assert jacobian(displacement).min() > 0
    assert not displacement[:, ~ball].any()
    # Points along any axis keep their order: the map can be undone.
    for axis, part in enumerate(displacement):
        shape = [1, 1, 1]
        shape[axis] = 24
        assert (np.diff(np.arange(24).reshape(shape) - part, axis=axis) > 0).all()


def test_the_jacobian_is_that_of_numpy():
    rng = np.random.default_rng(0)
    displacement = np.stack([smooth_noise((9, 8, 7), rng, 2.0) for _ in range(3)])
    gradient = np.array([[g[4, 4, 3] for g in np.gradient(part)] for part in displacement])
    expected = np.linalg.det(np.eye(3) - gradient)
    assert jacobian(displacement)[4, 4, 3] == pytest.approx(expected, rel=1e-4)


def test_warp_looks_back_by_the_displacement():
    ramp = np.broadcast_to(np.arange(12.0, dtype=np.float32)[:, None, None], (12, 6, 6))
    displacement = np.zeros((3, 12, 6, 6), np.float32)
    displacement[0, 3:9] = 1.5
    moved = warp(ramp, displacement, order=1)
    np.testing.assert_allclose(moved[3:9], ramp[3:9] - 1.5, atol=1e-5)
    np.testing.assert_array_equal(moved[:3], ramp[:3])


def test_coverage_of_a_sphere_is_its_volume():
    distance = np.linalg.norm(np.indices((31, 31, 31)) - 15.2, axis=0)
    assert cover(9.3 - distance).sum() == pytest.approx(4 / 3 * np.pi * 9.3**3, rel=0.01)


def test_above_gives_the_volume(brain):
    _, tissues, _ = brain
    level = np.random.default_rng(0).random(tissues.brain.shape)
    threshold = above(level, tissues.white, 20.0, tissues)
    assert ((level > threshold) & tissues.white).sum() * tissues.voxel_ml == pytest.approx(20.0, abs=0.1)


def test_paint_mixes_by_coverage_and_keeps_the_noise_level():
    rng = np.random.default_rng(0)
    levels = Levels(white=100.0, grey=70.0, csf=20.0, noise=4.0)
    image = (100 + 4 * smooth_noise((40, 40, 40), rng, 0.6)).astype(np.float32)
    coverage = np.zeros(image.shape, np.float32)
    coverage[:20] = 1
    coverage[20] = 0.5
    lesion = Lesion([Layer(coverage, 0.5)])
    sick = paint(image, lesion, levels, np.ones(image.shape, bool), rng)
    assert sick[:20].mean() == pytest.approx(60, abs=0.5)
    assert sick[20].mean() == pytest.approx(80, abs=1)
    np.testing.assert_array_equal(sick[21:], image[21:])
    assert sick[:20].std() == pytest.approx(4.0, rel=0.1)


def test_the_truth_names_the_layer_that_shows():
    full, half = np.ones((2, 2, 2), np.float32), np.full((2, 2, 2), 0.5, np.float32)
    mostly = np.full((2, 2, 2), 0.7, np.float32)
    assert (Lesion([Layer(full, 0.2, label=2), Layer(mostly, 0.5, label=1)]).truth() == 1).all()
    assert (Lesion([Layer(full, 0.2, label=2), Layer(half * 0.8, 0.5, label=1)]).truth() == 2).all()
    assert (Lesion([Layer(half * 0.9, 0.2)]).truth() == 0).all()
