"""Packed cohorts: what rounding costs, and what a file holds and refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import run
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from brainuad.config import DataConfig
from brainuad.data.loading import place_volumes
from brainuad.data.packed import PackedCohort, PackedScan, pack_scans, read_packed, to_levels, write_packed
from brainuad.data.volume import Volume
from brainuad.errors import InputError

FILES = Path(__file__).parents[1] / "files"
CONFIG = DataConfig(imageDim=(40, 48, 30), rescaleFactor=2.0, smoothing_iterations=1)


def placed() -> tuple[np.ndarray, np.ndarray]:
    """A real scan on a grid of half the voxels, with the overshoot of B-splines."""
    image, mask = (Volume.load(FILES / f"mslub19_{kind}_4mm.nii.gz") for kind in ("t1", "mask"))
    on_grid, inside, _, _ = place_volumes(image, mask, None, CONFIG)
    return on_grid, inside


def packed() -> PackedCohort:
    image, mask = placed()
    scans = [PackedScan("A", "IXI", "train"), PackedScan("B", "other", "train"), PackedScan("C", "IXI", "val")]
    volumes = [(image * brightness, mask) for brightness in (1.0, 0.9, 0.8)]
    return pack_scans(scans, volumes, CONFIG, fold=2)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_packed(tmp_path / "train.npz", packed())
    return tmp_path / "train.npz"


finite = st.floats(-100, 100, width=32).filter(lambda value: value == 0 or abs(value) > 1e-6)


@given(arrays.arrays(np.float32, arrays.array_shapes(min_dims=3, max_dims=3), elements=finite))
def test_rounding_is_half_a_step_and_keeps_zero(image: np.ndarray) -> None:
    levels, step, zero = to_levels(image)
    restored = (levels.astype(np.float64) - float(zero)) * float(step)
    reach = max(image.max(), 0) - min(image.min(), 0)
    assert np.abs(restored - image).max() <= 0.5 * float(step) * (1 + 1e-4)
    assert reach == 0 or step <= reach / 253.9 * (1 + 1e-6)
    assert (restored[image == 0] == 0).all()


def test_a_real_scan_with_overshoot() -> None:
    image, mask = placed()
    assert image.min() < 0
    assert image.max() > 1
    cohort = packed()
    restored, kept = cohort.pair(0)
    assert np.abs(restored - image).max() <= 0.5 * cohort.steps[0] * (1 + 1e-4)
    assert cohort.steps[0] <= (image.max() - image.min()) / 253
    np.testing.assert_array_equal(kept, mask)


def test_round_trip(file: Path) -> None:
    written, read = packed(), read_packed(file)
    for name in ("images", "masks", "steps", "zeros"):
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
    for name in ("scans", "settings", "fold", "version"):
        assert getattr(read, name) == getattr(written, name)
    assert read.split("train") == [0, 1]
    assert read.split("val") == [2]


def test_some_scans_of_every_set() -> None:
    many = packed()
    scans = [replace(scan, subject=f"{n}") for n in range(3) for scan in many.scans]
    again = replace(many, scans=tuple(scans))
    assert again.split("train", 2) == [0, 1, 3, 4]
    assert again.split("val", 1) == [2]


def change_header(**changes: Any) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        stored = dict(np.load(path))
        header = json.loads(stored["header"].tobytes()) | changes
        stored["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
        np.savez(path, **stored)

    return spoil


def change_array(name: str, array: Any) -> Callable[[Path], None]:
    return lambda path: np.savez(path, **(dict(np.load(path)) | {name: array}))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (Path.unlink, "no such file"),
        (flip, "is damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "is damaged"),
        (lambda path: path.write_text("no archive"), "is damaged"),
        (lambda path: np.savez(path, images=np.zeros(3)), "is damaged"),
        (lambda path: np.savez(path, header=np.array([{}], dtype=object)), "is damaged"),
        (change_header(format=99), "has format 99; this version reads 1. Update"),
        (change_header(scans=[]), "is damaged"),
        (change_header(settings={}), "is damaged"),
        (change_array("images", np.zeros((3, 2, 2, 2), np.uint8)), "is damaged"),
        (change_array("masks", np.zeros(3, np.uint8)), "is damaged"),
        (change_array("steps", np.full(3, np.nan, np.float32)), "is damaged"),
    ],
)
def test_what_is_refused(file: Path, spoil: Callable[[Path], None], fault: str) -> None:
    spoil(file)
    with pytest.raises(InputError, match=fault) as raised:
        read_packed(file)
    assert raised.value.subject == str(file)
    assert fault in run("check", file, code=1).stdout


def test_check_says_what_is_in_it(file: Path) -> None:
    lines = run("check", file).stdout.splitlines()
    assert lines[0].startswith(f"{file}: t1, fold 2: 2 scans to train on and 1 to validate on, 20 x 24 x 15")
    assert lines[1:] == ["0 errors, 0 warnings"]
    assert json.loads(run("check", file, "--json").stdout) == []
