"""Healthy scans set against each other, against doing it one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from brainuad.calibration import BrainMaps, HealthyScan, set_against_health, tail_quantiles
from brainuad.calibration.healthy import SUMMARY_MAPS
from brainuad.evaluation import scan_score
from brainuad.scoring import postprocess
from brainuad.scoring.health import MOMENT_MAPS, HealthyStatistics
from brainuad.scoring.names import IMAGE, relative_name
from brainuad.scoring.rarity import RARITY, Ensemble, Part, pooled_tail, rarity

SHAPE = (30, 36, 24)
PARTS = (Part("l1_ssim_z", 1), Part("ssim_1.7", 3))
ENSEMBLE = Ensemble(PARTS, power=0.5)


def raw_maps(seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Maps that are high on one side of every brain, and a brain of its own size."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(SHAPE, bool)
    mask[3 + seed % 2 : -4, 4:-4, 4:-4] = True
    place = np.linspace(0.5, 1.5, SHAPE[0])[:, None, None]
    return {name: (rng.gamma(2, 0.1, SHAPE) * place * mask).astype(np.float32) for name in SUMMARY_MAPS}, mask


def healthy_scans(count: int) -> list[HealthyScan]:
    found = []
    for seed in range(count):
        maps, mask = raw_maps(seed)
        found.append(HealthyScan.of({"l1": maps["l1"]}, maps, maps[IMAGE], mask))
    return found


def test_each_is_compared_with_the_scans_of_others() -> None:
    scans, subjects = healthy_scans(5), ["a", "b", "a", "c", "d"]
    health, related = set_against_health(scans, subjects, ENSEMBLE)
    assert health is not None
    assert health.scans == 5
    for number, (scan, subject) in enumerate(zip(related, subjects, strict=True)):
        others = HealthyStatistics(["l1"], SHAPE)
        for other, whose in zip(scans, subjects, strict=True):
            if whose != subject:
                others.add({"l1": other.maps.map("l1")}, other.maps.mask)
        mask = scan.maps.mask
        final = postprocess(others.score("l1_z", scans[number].maps.map("l1"), mask), mask).numpy()
        np.testing.assert_allclose(scan.tails["l1_z"], tail_quantiles(final[mask]), rtol=1e-3, atol=1e-3)
        assert scan.scores["l1_z"] == pytest.approx(scan_score(final, mask), rel=1e-3)
        np.testing.assert_array_equal(scan.tails["l1"], scans[number].tails["l1"])
    assert set(related[0].scores) == {"l1", RARITY, *map(relative_name, MOMENT_MAPS)}


def test_rarity_is_that_in_the_scans_of_others() -> None:
    scans, subjects = healthy_scans(5), ["a", "b", "a", "c", "d"]
    health, related = set_against_health(scans, subjects, ENSEMBLE)
    assert health is not None
    assert health.has_rarity(PARTS)

    def part_maps(number: int) -> list[np.ndarray]:
        others = HealthyStatistics(MOMENT_MAPS, SHAPE)
        for other, whose in zip(scans, subjects, strict=True):
            if whose != subjects[number]:
                others.add(other.maps.maps(), other.maps.mask)
        own, mask = scans[number].maps, scans[number].maps.mask
        maps = [
            others.score("l1_ssim_z", own.map("l1_ssim"), mask) if part.score == "l1_ssim_z" else own.map(part.score)
            for part in PARTS
        ]
        return [part.cleaned(map, mask).numpy()[mask] for part, map in zip(PARTS, maps, strict=True)]

    parts = [part_maps(number) for number in range(5)]
    for number, subject in enumerate(subjects):
        others = [place for place, whose in enumerate(subjects) if whose != subject]
        voxels = [scans[place].voxels for place in others]
        tails = [pooled_tail(np.stack([tail_quantiles(parts[place][k]) for place in others]), voxels) for k in (0, 1)]
        found = ENSEMBLE.fuse(rarity(torch.from_numpy(parts[number][k]), tails[k]) for k in (0, 1)).numpy()
        np.testing.assert_allclose(related[number].tails[RARITY], tail_quantiles(found), rtol=0.02, atol=0.02)
        assert related[number].scores[RARITY] == pytest.approx(found.mean(), rel=0.01)


def test_too_few_others_to_compare_with() -> None:
    scans = healthy_scans(3)
    for subjects in (["a", "b"], ["a", "a", "b"]):
        health, related = set_against_health(scans[: len(subjects)], subjects)
        assert health is None
        assert related == scans[: len(subjects)]


def test_maps_of_the_brain_come_back() -> None:
    maps, mask = raw_maps(1)
    kept = BrainMaps.of(maps, mask)
    for name, map in maps.items():
        np.testing.assert_allclose(kept.map(name), map, rtol=1e-3)
        assert kept.values[name].shape == (mask.sum(),)


def test_a_summary_on_disk_is_the_same_summary() -> None:
    scan = healthy_scans(1)[0]
    again = HealthyScan.from_arrays(scan.to_arrays())
    np.testing.assert_array_equal(again.maps.mask, scan.maps.mask)
    for name, values in scan.maps.values.items():
        np.testing.assert_array_equal(again.maps.values[name], values)
