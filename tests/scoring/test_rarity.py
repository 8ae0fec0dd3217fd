"""Rarity in healthy brains, against counting."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from brainuad.errors import InputError
from brainuad.scoring import erode_brain
from brainuad.scoring.health import HealthyMoments
from brainuad.scoring.names import base_of, bases_of
from brainuad.scoring.rarity import RAREST, RARITY, TAIL, Ensemble, Part, cleaned, pooled_tail, rarity, tail_quantiles

SHAPE = (30, 28, 16)
PARTS = (Part("l1_ssim_z", 1), Part("ssim_1.7", 2.5))
ENSEMBLE = Ensemble(PARTS, power=0.5)
samples = hnp.arrays(np.float32, st.integers(2, 300), elements=st.floats(0, 5, width=16))


def reached(healthy: np.ndarray, value: float) -> float:
    """Minus the logarithm of the share of healthy values that are as high."""
    return float(-np.log10(np.mean(healthy >= value)))


def test_rarity_is_a_count() -> None:
    healthy = np.random.default_rng(0).gamma(2, size=200_000).astype(np.float32)
    values = np.quantile(healthy, [0.05, 0.5, 0.9, 0.99, 0.999, 0.9999]).astype(np.float32)
    found = rarity(torch.from_numpy(values), tail_quantiles(healthy))
    np.testing.assert_allclose(found, [reached(healthy, value) for value in values], atol=0.03)


@settings(max_examples=60, deadline=None)
@given(healthy=samples, values=samples)
def test_higher_is_rarer(healthy: np.ndarray, values: np.ndarray) -> None:
    ordered = np.sort(values)
    found = rarity(torch.from_numpy(ordered), tail_quantiles(healthy)).numpy()
    assert np.isfinite(found).all()
    assert (np.diff(found) >= 0).all()
    assert (found >= 0).all()
    assert (found[ordered <= healthy.min()] == 0).all()


def test_beyond_what_healthy_voxels_reach_higher_is_rarer_still() -> None:
    tail = tail_quantiles(np.random.default_rng(0).exponential(size=500_000))
    found = rarity(torch.tensor([tail[-1], tail[-1] + 1, tail[-1] + 2]), tail).numpy()
    straight = RAREST * np.exp(found / RAREST - 1)
    np.testing.assert_allclose(np.diff(straight), np.log10(np.e), rtol=0.1)  # as the exponential distribution goes on


def test_nothing_is_rare_where_all_healthy_voxels_are_alike() -> None:
    assert not rarity(torch.tensor([0.0, 7.0]), np.zeros(1001, np.float32)).any()


def test_tails_of_several_scans_are_that_of_all_their_voxels() -> None:
    rng = np.random.default_rng(0)
    scans = [rng.gamma(shape, size=size) for shape, size in ((2, 50_000), (3, 80_000), (2.5, 20_000))]
    pooled = pooled_tail(np.stack([tail_quantiles(scan) for scan in scans]), [len(scan) for scan in scans])
    usual = (TAIL <= 0.9) & (TAIL >= 1e-3)
    np.testing.assert_allclose(pooled[usual], tail_quantiles(np.concatenate(scans))[usual], rtol=0.02)
    assert (np.diff(pooled) >= 0).all()


@given(values=hnp.arrays(np.float32, (3, 5), elements=st.floats(0, 7, width=16)))
def test_the_fusion_lies_between_mean_and_maximum(values: np.ndarray) -> None:
    found = Ensemble(PARTS).fuse(torch.from_numpy(values)).numpy()
    assert (found >= values.mean(0) - 1e-4).all()
    assert (found <= values.max(0) + 1e-4).all()


@settings(deadline=None)
@given(level=st.floats(0.01, 100), values=hnp.arrays(np.float32, 50, elements=st.floats(0.125, 5, width=16)))
def test_a_brain_that_is_rarer_throughout_comes_half_of_the_way_back(level: float, values: np.ndarray) -> None:
    values[::5] = 0  # outside the brain
    map = torch.from_numpy(values)
    found, scaled = ENSEMBLE.fuse([map]), ENSEMBLE.fuse([map * level])
    torch.testing.assert_close(scaled, found * level**0.5, rtol=1e-3, atol=1e-6)
    assert (found[map.argsort()].diff() >= -1e-5).all()
    assert torch.equal(found == 0, map == 0)


def test_without_a_power_the_fused_map_is_as_it_is() -> None:
    maps = [torch.rand(3, 4), torch.rand(3, 4)]
    assert torch.equal(Ensemble(PARTS).fuse(maps), torch.stack(maps).pow(3).mean(0).pow(1 / 3))


def test_a_map_of_nothing_stays_one() -> None:
    assert not ENSEMBLE.fuse([torch.zeros(3, 3)]).any()


def moments(rng: np.random.Generator) -> HealthyMoments:
    mean, sd = np.full(SHAPE, 0.2, np.float32), np.full(SHAPE, 0.1, np.float32)
    bases = [base for part in PARTS if (base := base_of(part.score))]
    tails = {str(part): tail_quantiles(rng.gamma(2, size=10_000)) for part in PARTS}
    return HealthyMoments(5, dict.fromkeys(bases, (mean, sd)), tails)


def test_every_part_is_cleaned_at_its_own_scale(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    health = moments(rng)
    mask = np.zeros(SHAPE, bool)
    mask[2:-2, 2:-2, 2:-2] = True
    maps = {name: (rng.random(SHAPE) * mask).astype(np.float32) for name in bases_of(RARITY, PARTS)}
    expected = []
    for part in PARTS:
        base = base_of(part.score)
        map = maps[base or part.score]
        if base:
            map = np.maximum((map - 0.2) / 0.1, 0).astype(np.float32) * mask
        inside = erode_brain(mask.astype(np.float32), mask).numpy()
        total, weight = (
            ndimage.gaussian_filter(values, part.width, mode="mirror", truncate=3.5)
            for values in (map * inside, inside)
        )
        smooth = np.divide(total, weight, out=np.zeros_like(total), where=inside > 0)
        expected.append(rarity(torch.from_numpy(smooth), health.tails[str(part)]))
    found = health.rarity(maps, mask, ENSEMBLE)
    torch.testing.assert_close(found, ENSEMBLE.fuse(expected) * torch.from_numpy(mask), rtol=1e-3, atol=1e-4)
    assert torch.equal(cleaned(RARITY, found, mask), found)

    health.save(tmp_path / "health.safetensors")
    again = HealthyMoments.load(tmp_path / "health.safetensors")
    assert again.has_rarity(PARTS)
    assert not again.has_rarity([*PARTS, Part("l1", 1)])
    torch.testing.assert_close(again.rarity(maps, mask, ENSEMBLE), found, rtol=1e-2, atol=1e-2)
    HealthyMoments(5, {}, health.tails).save(tmp_path / "tails.safetensors")
    alone = HealthyMoments.load(tmp_path / "tails.safetensors")
    assert alone.has_rarity(PARTS)
    with pytest.raises(InputError, match="It compares none voxel by voxel"):
        alone.check("l1")
    changed = HealthyMoments(5, health.moments, {name: tail + 1 for name, tail in health.tails.items()})
    assert changed.fingerprint != health.fingerprint


def test_a_tail_that_falls_is_damage(tmp_path: Path) -> None:
    health = moments(np.random.default_rng(0))
    falling = {name: tail[::-1] for name, tail in health.tails.items()}
    HealthyMoments(5, health.moments, falling).save(tmp_path / "health.safetensors")
    with pytest.raises(InputError, match="holds no moments of healthy scans"):
        HealthyMoments.load(tmp_path / "health.safetensors")
