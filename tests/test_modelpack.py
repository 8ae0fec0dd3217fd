"""``brainuad models pack`` and ``unpack``: what returns, and what is noticed on the way."""

from __future__ import annotations

import hashlib
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from commands import run
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.torch import load_file
from tiny import tiny_detector

from brainuad import modelpack
from brainuad.detector import load_model
from brainuad.errors import InputError
from brainuad.modelfile import from_8_bits, to_8_bits
from brainuad.modelpack import merge_bytes, pack_model, split_bytes, unpack_model

FILES = {"config.yaml", "model.safetensors", "calibration.json"}
weights = st.floats(-(2.0**100), 2.0**100, width=32).filter(lambda value: value == 0 or abs(value) > 1e-30)


def test_32_bits_are_stored_as_16(model: Path, tmp_path: Path) -> None:
    pack_model(model, tmp_path / "parts", part_size=20_000, bits=32)
    unpack_model(tmp_path / "parts", tmp_path / "again")
    assert load_model(tmp_path / "again", "cpu").device.type == "cpu"


some_shapes = arrays.array_shapes(min_dims=2, max_dims=4, max_side=5)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tiny_detector().save(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def parts(model: Path, tmp_path: Path) -> Path:
    pack_model(model, tmp_path / "parts", part_size=20_000)
    return tmp_path / "parts"


@given(arrays.arrays(np.float16, st.integers(0, 50), elements=st.floats(width=16)))
def test_bytes_that_were_split_are_merged(values: np.ndarray) -> None:
    high, low = split_bytes(values)
    np.testing.assert_array_equal(merge_bytes(high, low).view(np.uint16), values.view(np.uint16))


@given(arrays.arrays(np.float32, some_shapes, elements=weights))
def test_8_bits_are_off_by_half_a_scale(values: np.ndarray) -> None:
    levels, scales = to_8_bits(values)
    error = np.abs(from_8_bits(levels, scales).astype(np.float64) - values).reshape(len(values), -1).max(axis=1)
    assert (error <= 0.5 * scales.astype(np.float64) * (1 + 1e-4)).all()


@given(content=st.binary(min_size=1, max_size=300), size=st.integers(1, 60))
def test_parts_make_the_archive(content: bytes, size: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("parts")
    shares = [content[start : start + size] for start in range(0, len(content), size)]
    digest = hashlib.sha256(content).hexdigest()
    for number, share in enumerate(shares, start=1):
        name = modelpack._part_name(number, len(shares))
        (folder / name).write_bytes(modelpack._part(digest, number, len(shares), share))
    assert modelpack._joined(folder) == content


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shipped model in 16 bits."""
    folder = tmp_path_factory.mktemp("shipped") / "model"
    load_model("lite-t1", "cpu").save(folder, bits=16)
    return folder


def test_a_model_in_16_bits_returns_to_the_byte(shipped: Path, tmp_path: Path) -> None:
    shown = run("models", "pack", shipped, "-o", tmp_path / "parts", "--part-size", "3MB")
    parts = sorted((tmp_path / "parts").iterdir())
    assert shown.stdout.split() == [str(path) for path in parts]
    assert [path.name for path in parts] == [f"model.part-{n}-of-{len(parts)}" for n in range(1, len(parts) + 1)]
    assert max(path.stat().st_size for path in parts) <= 3_000_000
    run("models", "unpack", tmp_path / "parts", "-o", tmp_path / "model")
    names = {*FILES, "health.safetensors"}
    assert {path.name for path in (tmp_path / "model").iterdir()} == names
    for name in names:
        assert (tmp_path / "model" / name).read_bytes() == (shipped / name).read_bytes(), name
    size = sum(path.stat().st_size for path in parts)
    assert 3_000_000 < size < 0.85 * sum((tmp_path / "model" / name).stat().st_size for name in names)


@pytest.mark.parametrize(("bits", "error"), [(16, 2**-11), (8, 0.5 / 127)])
def test_trained_weights_are_rounded(model: Path, tmp_path: Path, bits: int, error: float) -> None:
    run("models", "pack", model, "-o", tmp_path / "parts", "--bits", bits)
    run("models", "unpack", tmp_path / "parts", "-o", tmp_path / "again")
    assert {path.name for path in (tmp_path / "again").iterdir()} == FILES
    (row,) = run("models", "verify", tmp_path / "again").stdout.splitlines()[1:]
    assert row.split("\t")[1:3] == ["ok", "as recorded"]
    before, after = (load_file(folder / "model.safetensors") for folder in (model, tmp_path / "again"))
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert after[name].dtype == torch.float16
        allowed = error * (value.abs().max() if bits == 8 else value.abs()) * 1.1 + 1e-7
        assert ((after[name].float() - value).abs() <= allowed).all(), name
    saved, again = (yaml.safe_load((folder / "config.yaml").read_text()) for folder in (model, tmp_path / "again"))
    assert again.pop("weights_bits", 16) == bits
    del saved["weights_sha256"], again["weights_sha256"]
    assert again == saved


def test_8_bits_need_half_the_bytes(shipped: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"  # without what scores relative to health compare with
    plain.mkdir()
    for name in FILES:
        shutil.copyfile(shipped / name, plain / name)
    weights = sum(weight.numel() for weight in load_model(shipped, "cpu").model.parameters())
    sizes = {}
    for bits in (16, 8):
        made = pack_model(plain, tmp_path / f"{bits}", part_size=10**9, bits=bits)
        sizes[bits] = sum(path.stat().st_size for path in made)
    assert sizes[16] < 0.86 * 2 * weights
    assert sizes[8] < 0.96 * weights


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def of_another_model(path: Path) -> None:
    other = path.parent.parent / "other"
    detector = tiny_detector(mode="t2")
    detector.save(other)
    pack_model(other, path.parent.parent / "others", part_size=20_000)
    shutil.copyfile(path.parent.parent / "others" / path.name, path)


def of_another_size(path: Path) -> None:
    pack_model(path.parent.parent / "model", path.parent.parent / "larger", part_size=30_000)
    (larger, *_) = sorted((path.parent.parent / "larger").iterdir())
    path.unlink()
    shutil.copyfile(larger, path.parent / larger.name)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, "no such file. Copy this part, too"),
    "content": (lambda path: flip(path, -1), "is damaged: its SHA-256 is not the recorded one"),
    "header": (lambda path: flip(path, 80), "is damaged: its SHA-256"),
    "digest": (lambda path: flip(path, 25), "is damaged: its SHA-256"),
    "short": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "is damaged: its SHA-256"),
    "empty": (lambda path: path.write_bytes(b""), "is no part of a packed model"),
    "text": (lambda path: path.write_text("a part"), "is no part of a packed model"),
    "foreign": (of_another_model, "is a part of another model"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_bad_part_is_named(parts: Path, tmp_path: Path, name: str) -> None:
    spoil, fault = DAMAGES[name]
    part = sorted(parts.iterdir())[1]
    spoil(part)
    shown = run("models", "unpack", parts, "-o", tmp_path / "again", code=1)
    (line,) = shown.stderr.splitlines()
    assert line.startswith(f"brainuad: error: {part}: {fault}")
    assert not (tmp_path / "again").exists()
    assert not list(tmp_path.glob(".partial*"))


def test_a_part_of_other_parts_of_the_same_model(parts: Path, tmp_path: Path) -> None:
    of_another_size(sorted(parts.iterdir())[0])
    with pytest.raises(InputError, match="is a part of another model"):
        unpack_model(parts, tmp_path / "again")


def hostile(index: bytes) -> Callable[[Path], None]:
    """One part that is what it says it is, and holds what no model is."""

    def write(folder: Path) -> None:
        archive = struct.pack("<I", len(index)) + index
        digest = hashlib.sha256(archive).hexdigest()
        (folder / "model.part-1-of-1").write_bytes(modelpack._part(digest, 1, 1, archive))

    return write


@pytest.mark.parametrize(
    ("write", "fault"),
    [
        (hostile(b"{"), "holds no model that can be read"),
        (hostile(b"[]"), "holds no model that can be read"),
        (hostile(b'{"format": 9}'), "has format 9; this version reads 1"),
        (hostile(b'{"format": 1, "streams": [["high", 5, 99999999999999]]}'), "holds no model"),
        (hostile(b'{"format": 1, "streams": [["high", 5, 5]]}'), "holds no model"),
        (hostile(b'{"format": 1, "streams": [], "weights": [], "bits": 16}'), "holds no model"),
        (lambda folder: None, "holds no part of a packed model"),
        (Path.rmdir, "no such folder"),
    ],
)
def test_what_is_no_packed_model(write: Callable[[Path], None], fault: str, tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    write(folder)
    with pytest.raises(InputError, match=fault):
        unpack_model(folder, tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("entry", [{"kind": "float16", "shape": [-1]}, {"kind": "object", "shape": [1]}])
def test_weights_that_make_no_sense(entry: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"negative length|unknown kind"):
        modelpack._decode([{"name": "a", **entry}], {"high": b"", "low": b"", "other": b""})


def test_nothing_is_overwritten(parts: Path, model: Path, tmp_path: Path) -> None:
    for words in (("pack", model, "-o", parts), ("unpack", parts, "-o", model)):
        assert "exists already" in run("models", *words, code=1).stderr
    (tmp_path / "new").mkdir()
    run("models", "unpack", parts, "-o", tmp_path / "new")


def test_weights_that_16_bits_cannot_hold(tmp_path: Path) -> None:
    detector = tiny_detector()
    with torch.no_grad():
        next(detector.model.parameters()).fill_(70_000)
    detector.save(tmp_path / "model")
    with pytest.raises(InputError, match="holds values beyond 65504"):
        pack_model(tmp_path / "model", tmp_path / "parts", part_size=10_000)
    assert not (tmp_path / "parts").exists()


@pytest.mark.parametrize(
    ("option", "code", "fault"),
    [
        (["--part-size", "big"], 2, "'big' is no size such as 15MB"),
        (["--part-size", "100B"], 1, "100 bytes are too few"),
        (["--bits", "4"], 2, "'4' is none of 16, 8"),
    ],
)
def test_options(option: list[str], code: int, fault: str, model: Path, tmp_path: Path) -> None:
    shown = run("models", "pack", model, "-o", tmp_path / "parts", *option, code=code).stderr
    assert fault in " ".join(shown.replace("│", " ").split())
