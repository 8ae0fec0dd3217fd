"""Reconstructions on disk: found again, rounded alike, bounded, never trusted."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_detector

from brainuad.detector import Detector
from brainuad.models.base import Inference
from brainuad.study import CachedInference

IMAGE = np.random.default_rng(0).random((8, 12, 4), dtype=np.float32)


@pytest.fixture
def detector(tmp_path: Path) -> Detector:
    return tiny_detector(cache_dir=str(tmp_path))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    made: list[int] = []
    original = Detector.infer

    def counted(self: Detector, image: Any, mask: Any, seed: int = 0, names: Sequence[str] = ()) -> Inference:
        made.append(seed)
        return original(self, image, mask, seed, names)

    monkeypatch.setattr(Detector, "infer", counted)
    return made


def reconstruction(detector: Detector, image: np.ndarray, seed: int) -> torch.Tensor:
    return CachedInference(detector)(image, None, seed).reconstruction


def entries(folder: Path) -> list[Path]:
    return sorted((folder / "reconstructions").glob("*.npy"))


def test_found_again_by_another_process(detector: Detector, calls: list[int]) -> None:
    first = reconstruction(detector, IMAGE, 3)
    again = reconstruction(detector, IMAGE.copy(), 3)
    assert calls == [3]
    assert torch.equal(first, again)
    assert again.dtype == torch.float32
    expected = detector.reconstruct(IMAGE, 3)
    assert torch.equal(again, expected.half().float())


def test_anything_that_changes_it_is_another_entry(detector: Detector, calls: list[int]) -> None:
    reconstruction(detector, IMAGE, 3)
    reconstruction(detector, IMAGE, 4)
    reconstruction(detector, IMAGE + np.float32(1e-6), 3)
    reconstruction(detector, IMAGE.reshape(8, 4, 12), 3)
    reconstruction(detector.with_settings(test_timesteps=250), IMAGE, 3)
    assert len(calls) == 5


def test_several_draws_are_kept_together(detector: Detector, calls: list[int]) -> None:
    found, again = (CachedInference(detector)(IMAGE, None, 3, ["mahalanobis"]).reconstruction for _ in range(2))
    assert calls == [3]
    assert torch.equal(found, again)
    assert torch.equal(found, detector.reconstruct(IMAGE, 3, draws=10).half().float())
    assert torch.equal(found[:1], reconstruction(detector, IMAGE, 3))
    assert calls == [3, 3]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-10]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("no array"),
        lambda path: np.save(path, np.zeros((1, 2, 3, 4), np.float16)),
        lambda path: np.save(path, np.full((1, *IMAGE.shape), np.nan, np.float16)),
        lambda path: np.save(path, np.zeros((1, *IMAGE.shape))),
        lambda path: np.save(path, np.array([{"not": "trusted"}]), allow_pickle=True),
    ],
    ids=["cut off", "empty", "text", "shape", "nan", "type", "pickle"],
)
def test_a_damaged_entry_is_made_again(detector: Detector, calls: list[int], tmp_path: Path, damage: Any) -> None:
    first = reconstruction(detector, IMAGE, 3)
    (path,) = entries(tmp_path)
    damage(path)
    assert torch.equal(reconstruction(detector, IMAGE, 3), first)
    assert torch.equal(reconstruction(detector, IMAGE, 3), first)
    assert calls == [3, 3]


def test_the_entries_used_longest_ago_make_room(detector: Detector, calls: list[int], tmp_path: Path) -> None:
    one = 2 * IMAGE.size + 128
    cached = CachedInference(detector, max_bytes=3 * one)
    for seed in range(3):
        cached(IMAGE, None, seed)
        (newest,) = set(entries(tmp_path)) - {path for path in entries(tmp_path) if path.stat().st_mtime < 1e9}
        os.utime(newest, (seed, seed))
    cached(IMAGE, None, 0)  # now the one used last
    cached(IMAGE, None, 7)
    assert len(entries(tmp_path)) == 3
    assert sum(path.stat().st_size for path in entries(tmp_path)) <= 3 * one
    calls.clear()
    cached(IMAGE, None, 0)
    cached(IMAGE, None, 7)
    assert calls == []
    cached(IMAGE, None, 1)
    assert calls == [1]


def test_without_a_folder_to_write_to_it_goes_on(
    calls: list[int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    cached = CachedInference(tiny_detector(cache_dir=str(tmp_path / "file")))
    first = cached(IMAGE, None, 3).reconstruction
    assert torch.equal(cached(IMAGE, None, 3).reconstruction, first)
    assert calls == [3, 3]
    assert caplog.text.count("Reconstructions are not kept") == 1


def test_no_number_is_no_entry(detector: Detector, tmp_path: Path) -> None:
    next(detector.model.parameters()).view(-1)[0] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        reconstruction(detector, IMAGE, 3)
    assert entries(tmp_path) == []
