"""A trained model as a few small files, to copy from a machine with little bandwidth.

Weights are stored in 16 or 8 bits. The high bytes of 16-bit numbers (sign, exponent, first bits of the mantissa) are
stored together, and a Huffman code shortens them by a third. The low bytes are noise and cannot be compressed. Nothing
in a part is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from omegaconf import OmegaConf
from safetensors.torch import save
from torch import Tensor

from brainuad._version import __version__
from brainuad.errors import InputError
from brainuad.files import atomic_folder, atomic_path, sha256, write_text
from brainuad.modelfile import (
    CALIBRATION,
    CONFIG,
    HEALTH,
    SCALES,
    WEIGHTS,
    WEIGHTS_HASH,
    from_8_bits,
    read_health,
    read_model,
    rounded,
)

FORMAT = 1
STORED_BITS = "weights_bits"  # entry of config.yaml, of a model that was packed in fewer than 16 bits
_MAGIC = b"brainuad model part\n"
_LIMIT = 4_000_000_000  # most bytes of a decompressed stream, against hostile parts
_Streams = dict[str, bytes]


@dataclass(frozen=True)
class Part:
    """One file of a packed model: its number, from 1, of how many."""

    path: Path
    number: int
    count: int
    archive: str  # SHA-256 of the whole archive, which identifies the model
    content: bytes  # its bytes of the archive


def pack_model(folder: str | Path, output: str | Path, *, part_size: int, bits: int = 16) -> list[Path]:
    """Write a model as a folder of parts, completely or not at all.

    Args:
        folder: Folder of the model.
        output: Folder of the parts; it must not exist yet, or be empty.
        part_size: Largest size of a part in bytes.
        bits: 16 or more stores float16; 8 stores matrices and kernels in 8 bits with a scale for
            each output channel, and the rest in 16.

    Returns:
        The parts, in order.

    Raises:
        InputError: The folder holds no usable model, its weights do not fit in 16 bits, parts are too small, or the
            output folder is in use or cannot be written to.
    """
    archive = _archive(Path(folder), bits)
    digest = hashlib.sha256(archive).hexdigest()
    capacity = part_size - len(_part(digest, 2**31, 2**31, b""))
    if capacity < 1:
        raise InputError("part size", f"{part_size} bytes are too few", "Give 1kB or more")
    count = -(-len(archive) // capacity)
    with atomic_folder(output) as temporary:
        for index in range(count):
            content = archive[index * capacity : (index + 1) * capacity]
            (temporary / _part_name(index + 1, count)).write_bytes(_part(digest, index + 1, count, content))
    return [Path(output) / _part_name(number, count) for number in range(1, count + 1)]


def unpack_model(folder: str | Path, output: str | Path) -> None:
    """Verify a folder of parts, and write its model as a model folder, completely or not at all.

    Args:
        folder: Folder of the parts.
        output: Folder of the model; it must not exist yet, or be empty.

    Raises:
        InputError: A part is missing, damaged, or from another model or a newer version; or the output folder is in use
            or cannot be written to.
    """
    folder = Path(folder)
    index, streams = _contents(_joined(folder), folder)
    try:
        weights = _decode(index["weights"], streams)
        settings = yaml.safe_load(streams[CONFIG])
        bits = int(index["bits"])
        if not isinstance(settings, dict):
            raise ValueError("no settings")
    except (LookupError, TypeError, ValueError, RuntimeError, yaml.YAMLError) as error:
        raise InputError(folder, "holds no model that can be read", "Pack the model again") from error
    with atomic_folder(output) as temporary:
        with atomic_path(temporary / WEIGHTS) as file:  # gives it the usual permissions
            file.write_bytes(save(weights))
        settings[WEIGHTS_HASH] = sha256(temporary / WEIGHTS)
        if bits < 16:
            settings[STORED_BITS] = bits
        write_text(temporary / CONFIG, OmegaConf.to_yaml(OmegaConf.create(settings)))
        for name in (CALIBRATION, HEALTH):
            if name in streams:
                (temporary / name).write_bytes(streams[name])
        try:
            read_model(temporary)
            read_health(temporary)
        except InputError as error:
            raise InputError(folder, f"holds a model that {error.fault}", "Pack the model again") from error


def _archive(folder: Path, bits: int) -> bytes:
    """Return a model folder as bytes: a JSON index behind its length, then compressed streams."""
    model, *_ = read_model(folder)
    read_health(folder)  # raises if the model is damaged
    entries, streams = _encode(model.state_dict(), bits, folder / WEIGHTS)
    for name in (CONFIG, CALIBRATION, HEALTH):
        if (folder / name).is_file():
            streams[name] = (folder / name).read_bytes()
    packed = {name: _compressed(content, name) for name, content in streams.items()}
    index = {
        "format": FORMAT,
        "version": __version__,
        "bits": bits,
        "weights": entries,
        "streams": [[name, len(packed[name]), len(streams[name])] for name in packed],
    }
    text = json.dumps(index).encode()
    return b"".join([struct.pack("<I", len(text)), text, *packed.values()])


def _compressed(content: bytes, name: str) -> bytes:
    # Huffman codes alone: on weights, searching for repetitions saves no more and takes twenty times as long
    strategy = zlib.Z_DEFAULT_STRATEGY if name in (CONFIG, CALIBRATION, HEALTH) else zlib.Z_HUFFMAN_ONLY
    compressor = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, strategy)
    return compressor.compress(content) + compressor.flush()


def _contents(archive: bytes, folder: Path) -> tuple[dict[str, Any], _Streams]:
    """Return the index and the streams of an archive.

    Raises:
        InputError: It is damaged, or from a newer version.
    """
    remedy = "Pack the model again"
    try:
        (length,) = struct.unpack_from("<I", archive)
        index = json.loads(archive[4 : 4 + length])
        written = index["format"]
        streams, start = {}, 4 + length
        for name, packed, unpacked in index["streams"] if written == FORMAT else []:
            if not 0 <= unpacked <= _LIMIT:
                raise ValueError("too large")
            content = zlib.decompressobj().decompress(archive[start : start + packed], unpacked + 1)
            if len(content) != unpacked:
                raise ValueError("other length")
            streams[name], start = content, start + packed
    except (LookupError, TypeError, ValueError, RecursionError, struct.error, zlib.error) as error:
        raise InputError(folder, "holds no model that can be read", remedy) from error
    if written != FORMAT:
        raise InputError(folder, f"has format {written!r}; this version reads {FORMAT}", "Update brainuad")
    return index, streams


def _encode(weights: Mapping[str, Tensor], bits: int, path: Path) -> tuple[list[dict[str, Any]], _Streams]:
    """Return the index of the weights, and their bytes by kind."""
    entries = []
    pieces: dict[str, list[bytes]] = {name: [] for name in ("high", "low", "levels", "scales", "other")}
    stored = rounded(weights, min(bits, 16))
    for name, value in stored.items():
        if name.endswith(SCALES):
            pieces["scales"].append(value.numpy().tobytes())
            continue
        kind = str(value.dtype).removeprefix("torch.")
        if name + SCALES in stored:
            pieces["levels"].append(value.numpy().tobytes())
        elif not value.is_floating_point():
            pieces["other"].append(value.numpy().tobytes())
        elif value.isfinite().all():
            high, low = split_bytes(value.numpy())
            pieces["high"].append(high)
            pieces["low"].append(low)
        else:
            fault = f"{name!r} holds values beyond 65504, which 16 bits cannot hold"
            raise InputError(path, fault, "Take another checkpoint")
        entries.append({"name": name, "kind": kind, "shape": list(value.shape)})
    return entries, {name: b"".join(parts) for name, parts in pieces.items()}


def _decode(entries: list[dict[str, Any]], streams: _Streams) -> dict[str, Tensor]:
    """Return the weights of `_encode`; floating-point ones as float16.

    Raises:
        LookupError, TypeError, ValueError, RuntimeError: The entries and the streams do not belong together.
    """
    used = Counter[str]()

    def take(stream: str, count: int) -> bytes:
        content = streams[stream][used[stream] : used[stream] + count]
        if len(content) != count:
            raise ValueError(f"{stream} is too short")
        used[stream] += count
        return content

    weights = {}
    for entry in entries:
        shape, kind = [int(length) for length in entry["shape"]], entry["kind"]
        if min(shape, default=0) < 0:
            raise ValueError("negative length")
        count = int(np.prod(shape, dtype=object)) if shape else 1
        if kind == "float16":
            array = merge_bytes(take("high", count), take("low", count))
        elif kind == "int8":
            levels = np.frombuffer(take("levels", count), np.int8).reshape(shape)
            scales = np.frombuffer(take("scales", 4 * shape[0]), "<f4")
            array = from_8_bits(levels, scales).astype(np.float16)
        else:
            dtype = np.dtype(kind)
            if dtype.kind not in "biu":
                raise ValueError(f"unknown kind {kind!r}")
            array = np.frombuffer(take("other", count * dtype.itemsize), dtype).copy()
        weights[entry["name"]] = torch.from_numpy(array).reshape(shape)
    return weights


def split_bytes(values: np.ndarray) -> tuple[bytes, bytes]:
    """Return the high and the low bytes of float16 values, in order."""
    pairs = np.ascontiguousarray(values, dtype="<f2").reshape(-1).view(np.uint8).reshape(-1, 2)
    return pairs[:, 1].tobytes(), pairs[:, 0].tobytes()


def merge_bytes(high: bytes, low: bytes) -> np.ndarray:
    """Return the ``(N,)`` float16 values of `split_bytes`."""
    pairs = np.stack([np.frombuffer(low, np.uint8), np.frombuffer(high, np.uint8)], axis=1)
    return pairs.reshape(-1).view("<f2").astype(np.float16)


def _part_name(number: int, count: int) -> str:
    width = len(str(count))
    return f"model.part-{number:0{width}}-of-{count}"


def _part(archive: str, number: int, count: int, content: bytes) -> bytes:
    """Return the bytes of a part: magic word, SHA-256 of what follows, header behind its length, content."""
    header = json.dumps({"archive": archive, "number": number, "count": count}).encode()
    rest = struct.pack("<I", len(header)) + header + content
    return _MAGIC + hashlib.sha256(rest).digest() + rest


def _read_part(path: Path) -> Part:
    """Read and verify one part.

    Raises:
        InputError: It is damaged or not a part.
    """
    try:
        stored = path.read_bytes()
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror})", "Check its permissions") from error
    if not stored.startswith(_MAGIC):
        raise InputError(path, "is no part of a packed model, or damaged", "Copy it again, or remove it")
    start = len(_MAGIC) + 32
    digest, rest = stored[len(_MAGIC) : start], stored[start:]
    damaged = InputError(path, "is damaged: its SHA-256 is not the recorded one", "Copy it again")
    if hashlib.sha256(rest).digest() != digest:
        raise damaged
    try:
        (length,) = struct.unpack_from("<I", rest)
        header = json.loads(rest[4 : 4 + length])
        number, count = int(header["number"]), int(header["count"])
        return Part(path, number, count, str(header["archive"]), rest[4 + length :])
    except (LookupError, TypeError, ValueError, RecursionError, struct.error) as error:
        raise damaged from error


def _joined(folder: Path) -> bytes:
    """Return the archive of a folder of parts.

    Raises:
        InputError: A part is missing, damaged or of another model.
    """
    if not folder.is_dir():
        raise InputError(folder, "no such folder", "Give the folder of a packed model's parts")
    found = [_read_part(path) for path in sorted(folder.glob("model.part-*"))]
    if not found:
        raise InputError(folder, "holds no part of a packed model", "Its parts are called model.part-1-of-...")
    (archive, count), _ = Counter((part.archive, part.count) for part in found).most_common(1)[0]
    for part in found:
        if (part.archive, part.count) != (archive, count):
            raise InputError(part.path, "is a part of another model", "Remove it, and copy the right one")
    parts = {part.number: part.content for part in found}
    for number in range(1, count + 1):
        if number not in parts:
            raise InputError(folder / _part_name(number, count), "no such file", "Copy this part, too")
    joined = b"".join(parts[number] for number in range(1, count + 1))
    if hashlib.sha256(joined).hexdigest() != archive:
        raise InputError(folder, "holds parts that do not make the packed model", "Copy them all again")
    return joined
