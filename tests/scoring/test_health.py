import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from scipy import ndimage

from brainuad import moments
from brainuad.errors import InputError
from brainuad.registry import SCORES
from brainuad.scoring.health import HealthyMoments, HealthyStatistics
from brainuad.scoring.names import base_of, relative_name, score_names

SHAPE = (14, 12, 10)


@pytest.fixture
def scans():
    """Eight healthy maps whose mean and spread differ from place to place."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 1, SHAPE[0])[:, None, None] * np.ones(SHAPE)
    maps = [(ramp + (0.05 + 0.2 * ramp) * rng.standard_normal(SHAPE)).astype(np.float32) for _ in range(8)]
    mask = np.zeros(SHAPE, bool)
    mask[1:-1, 1:-1, 1:-1] = True
    return [(map, mask) for map in maps]


def learnt(scans, names=("l1",)):
    statistics = HealthyStatistics(names, SHAPE)
    for map, mask in scans:
        statistics.add(dict.fromkeys(names, map), mask)
    return statistics


def test_without_smoothing_moments_are_those_of_each_voxel(scans, monkeypatch):
    monkeypatch.setattr(moments, "SMOOTHING_VOXELS", 1e-3)
    monkeypatch.setattr(moments, "SD_FLOOR", 0)
    mean, sd = learnt(scans).moments("l1")
    inside, stack = scans[0][1], np.stack([map for map, _ in scans])
    np.testing.assert_allclose(mean[inside], stack.mean(0)[inside], atol=1e-5)
    np.testing.assert_allclose(sd[inside], stack.std(0)[inside], atol=1e-3)


def test_moments_are_those_of_a_gaussian_neighbourhood(scans):
    """Against weighted moments over all voxels and scans around one voxel."""
    weights = ndimage.gaussian_filter(
        np.eye(1, np.prod(SHAPE), np.ravel_multi_index((7, 6, 5), SHAPE)).reshape(SHAPE), moments.SMOOTHING_VOXELS
    )
    weights = np.stack([weights * mask for _, mask in scans])
    stack = np.stack([map for map, _ in scans])
    mean = np.average(stack, weights=weights)
    sd = np.sqrt(np.average((stack - mean) ** 2, weights=weights))
    found_mean, found_sd = learnt(scans).moments("l1")
    assert found_mean[7, 6, 5] == pytest.approx(mean, rel=1e-4)
    assert found_sd[7, 6, 5] == pytest.approx(sd, rel=1e-3)


def test_what_is_left_out_was_never_there(scans):
    everything, others = learnt(scans), learnt(scans[2:])
    for found, expected in zip(everything.moments("l1", without=scans[:2]), others.moments("l1"), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_scan_is_far_from_the_others_and_not_from_itself(scans):
    """Compared with a mean that holds it, an outlier looks more healthy than it is."""
    outlier = (scans[0][0] + 1, scans[0][1])
    statistics = learnt([outlier, *scans[1:]])
    own = statistics.score("l1_z", *outlier)
    fair = statistics.score("l1_z", *outlier, without=[outlier])
    assert fair[outlier[1]].mean() > 1.5 * own[outlier[1]].mean()


def test_scores_keep_the_contract(scans):
    statistics = learnt(scans, ("l1", "image"))
    rng = np.random.default_rng(1)
    map, mask = rng.random(SHAPE, np.float32), torch.from_numpy(scans[0][1])
    one_sided = statistics.score("l1_z", map, mask)
    both_sided = statistics.score("intensity_atlas", map, mask)
    for anomaly in (one_sided, both_sided):
        assert anomaly.dtype == torch.float32
        assert (anomaly[~mask] == 0).all()
        assert (anomaly >= 0).all()
        assert anomaly.isfinite().all()
    mean, sd = (torch.from_numpy(array) for array in statistics.moments("l1"))
    above = torch.from_numpy(map) > mean
    torch.testing.assert_close(one_sided[above & mask], ((torch.from_numpy(map) - mean) / sd)[above & mask])
    assert (one_sided[~above] == 0).all()
    torch.testing.assert_close(both_sided[above & mask], one_sided[above & mask])
    assert (both_sided[~above & mask] > 0).all()


def test_where_no_healthy_scan_has_brain_the_whole_brain_counts(scans):
    statistics = learnt([(map, mask & (np.arange(SHAPE[0]) < 5)[:, None, None]) for map, mask in scans])
    mean, sd = statistics.moments("l1")
    values = np.concatenate([map[:5][mask[:5]] for map, mask in scans])
    assert mean[-1, 6, 5] == pytest.approx(values.mean(), rel=1e-3)
    assert sd[-1, 6, 5] == pytest.approx(values.std(), rel=1e-3)


def test_constant_maps_have_a_spread_to_divide_by(scans):
    mask = scans[0][1]
    statistics = learnt([(np.full(SHAPE, 0.5, np.float32), mask)] * 4)
    assert statistics.score("l1_z", np.full(SHAPE, 0.7, np.float32), mask).isfinite().all()


def test_stored_and_read_again(scans, tmp_path):
    statistics = learnt(scans)
    path = tmp_path / "health.safetensors"
    statistics.save(path, "of these scans")
    again, about = HealthyStatistics.load(path)
    assert about == "of these scans"
    assert again.scans == 8
    for found, expected in zip(again.moments("l1"), statistics.moments("l1"), strict=True):
        np.testing.assert_array_equal(found, expected)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="holds no statistics"):
        HealthyStatistics.load(path)
    with pytest.raises(InputError, match="holds no statistics"):
        HealthyStatistics.load(tmp_path / "missing.safetensors")


def test_what_a_model_carries_scores_as_what_it_was_made_from(scans, tmp_path):
    statistics = learnt(scans, ("l1", "image"))
    statistics.carried().save(tmp_path / "health.safetensors")
    carried = HealthyMoments.load(tmp_path / "health.safetensors")
    assert carried.scans == 8
    map, mask = scans[3]
    for name in ("l1_z", "intensity_atlas"):
        torch.testing.assert_close(
            carried.score(name, map, mask), statistics.score(name, map, mask), rtol=5e-3, atol=5e-3
        )
    for pair, expected in ((carried.moments[name], statistics.moments(name)) for name in ("l1", "image")):
        for found, made in zip(pair, expected, strict=True):
            np.testing.assert_array_equal(found, made.astype(np.float16))
    with pytest.raises(InputError, match=r"l2_z: is not among the scores.*Choose one of intensity_atlas, l1_z"):
        carried.score("l2_z", map, mask)
    with pytest.raises(ValueError, match="shape"):
        carried.score("l1_z", map[1:], mask[1:])


@pytest.mark.parametrize(
    "change",
    [
        {"shape": np.array([1 << 20, 1 << 20, 1 << 20])},
        {"brain": np.zeros(3, np.uint8)},
        {"mean l1": np.zeros(5, np.float16)},
        {"sd l1": None},
        {"sd l1": 0},
        {"mean l1": np.nan},
    ],
)
def test_damaged_moments_are_refused(scans, tmp_path, change):
    path = tmp_path / "health.safetensors"
    learnt(scans).carried().save(path)
    arrays = load_file(path)
    for name, value in change.items():
        if value is None:
            del arrays[name]
        else:
            arrays[name] = value if isinstance(value, np.ndarray) else np.full_like(arrays[name], value)
    save_file(arrays, path, {"scans": "8"})
    with pytest.raises(InputError, match=r"holds no moments of healthy scans\. Calibrate again"):
        HealthyMoments.load(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="holds no moments"):
        HealthyMoments.load(path)


def test_unusable(scans):
    statistics = learnt(scans[:2])
    with pytest.raises(ValueError, match="1 healthy scans give no standard deviation"):
        statistics.score("l1_z", *scans[0], without=[scans[0]])
    with pytest.raises(ValueError, match="shape"):
        statistics.score("l1_z", scans[0][0][1:], scans[0][1][1:])


def test_names(monkeypatch):
    assert base_of("l1_z") == "l1"
    assert base_of("intensity_atlas") == "image"
    assert base_of("l1") is None
    assert [relative_name(base_of(name)) for name in ("l1_z", "intensity_atlas")] == ["l1_z", "intensity_atlas"]
    assert {*SCORES, "l1_z", "ssim_ensemble_z", "intensity_atlas"} <= set(score_names())
    for name in ("l3_z", "l3", "image"):
        with pytest.raises(InputError, match="unknown score"):
            base_of(name)
    monkeypatch.setitem(SCORES._entries, "own_z", lambda image, reconstructions, mask: image)
    assert base_of("own_z") is None, "somebody else's score of that name"


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e7])
def test_moments_of_any_range_are_kept(scale, tmp_path):
    rng = np.random.default_rng(2)
    mean = (scale * rng.random((6, 5, 4))).astype(np.float32)
    mean[:, :, 0] = mean[0, 0, 0]
    moments = HealthyMoments(3, {"model": (mean, mean / 2 + np.float32(scale / 4))})
    moments.save(tmp_path / "health.safetensors")
    loaded = HealthyMoments.load(tmp_path / "health.safetensors")
    for stored, array in zip(loaded.moments["model"], moments.moments["model"], strict=True):
        np.testing.assert_allclose(stored, array, rtol=1e-3)
