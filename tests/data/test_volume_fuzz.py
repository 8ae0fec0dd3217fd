"""Thousands of damaged files: each is read, and then can be written, or refused in words.

The files are read in a process of its own whose address space may grow by 2 GiB, each in 20 seconds of processor time.
"""

from __future__ import annotations

import gzip
import json
import re
import resource
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from brainuad.data.volume import Volume
from brainuad.errors import InputError

SCAN = Path(__file__).parent.parent / "files" / "ixi013_t1_4mm.nii.gz"
ROOM = 2**31  # bytes
NUMBERS = (0, 1, -1, 2, 7, 8, 127, 255, 348, 352, 32767, -32768, 2**31 - 1, -(2**31), 2**62, 1e-38, 1e10, 3e38)
FLOATS = (*NUMBERS, np.nan, np.inf, -np.inf)


def sound_files() -> list[bytes]:
    """A corner of a real scan as NIfTI-1 with an extension, as NIfTI-2, and with the other byte order."""
    image = nib.load(SCAN).slicer[20:36, 20:36, 20:36]
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"made for the tests"))
    swapped = nib.Nifti1Image(image.dataobj, image.affine, image.header.as_byteswapped())
    return [kind.to_bytes() for kind in (image, nib.Nifti2Image.from_image(image), swapped)]


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """One file with bytes or fields of its header changed, cut off, or with its compressed stream changed."""
    length = 540 if b"n+2" in content[:12] else 348
    header = (nib.Nifti2Header if length == 540 else nib.Nifti1Header)(content[:length], check=False)
    for _ in range(rng.integers(0, 4)):
        field = str(rng.choice(header.keys()))
        kind, value = header[field].dtype.kind, header[field].copy()
        if kind in "iuf":
            number = rng.choice(FLOATS if kind == "f" else NUMBERS)
            with np.errstate(all="ignore"):
                spot = rng.integers(value.size) if value.ndim else ()
                value[spot] = np.float64(number).astype(value.dtype)
            header[field] = value
    changed = bytearray(header.binaryblock + content[length:])
    for _ in range(rng.integers(0, 6)):
        changed[rng.integers(length + 40)] = rng.integers(256)
    if rng.random() < 0.15:
        del changed[rng.integers(len(changed)) :]
    if rng.random() < 0.5:
        return bytes(changed)
    zipped = bytearray(gzip.compress(bytes(changed), 1))
    for _ in range(rng.integers(0, 3)):
        zipped[rng.integers(len(zipped))] ^= 1 << rng.integers(8)
    return bytes(zipped[: rng.integers(1, len(zipped))] if rng.random() < 0.15 else zipped)


def damaged_files(count: int, seed: int) -> Iterator[bytes]:
    rng, sound = np.random.default_rng(seed), sound_files()
    return (damaged(sound[number % len(sound)], rng) for number in range(count))


def read_all(folder: Path, count: int, seed: int) -> Counter[str]:
    """Read every file; whatever is raised but InputError ends the process."""
    outcomes: Counter[str] = Counter()
    for content in damaged_files(count, seed):
        path = folder / ("scan.nii.gz" if content[:2] == b"\x1f\x8b" else "scan.nii")
        path.write_bytes(content)
        signal.setitimer(signal.ITIMER_PROF, 20)
        try:
            volume = Volume.load(path)
            volume.save(folder / "again.nii")
            again = Volume.load(folder / "again.nii")
        except InputError as error:
            if not error.remedy or "\n" in str(error):
                raise AssertionError(error) from error
            outcomes[" ".join(re.findall(r"\b[a-zA-Z]+\b", error.fault)[:2])] += 1
        else:
            assert volume.array.ndim == 3
            assert np.isfinite(volume.array).all()
            np.testing.assert_array_equal(again.array, volume.array)
            outcomes["read"] += 1
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    return outcomes


def run(folder: Path, count: int, seed: int) -> Counter[str]:
    command = [sys.executable, __file__, str(folder), str(count), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return Counter(json.loads(done.stdout))


@pytest.mark.parametrize("count", [1000, pytest.param(3000, marks=pytest.mark.long)])
def test_damaged_files_are_refused_in_words_without_a_crash_a_hang_or_memory(tmp_path, count):
    outcomes = run(tmp_path, count, seed=count)
    assert sum(outcomes.values()) == count
    assert outcomes["read"] > count / 20, outcomes  # the damage is not so coarse that all stop at the first check
    assert len(outcomes) > 10, outcomes


@pytest.mark.slow
def test_the_largest_scan_needs_less_than_the_limit(tmp_path):
    """512 x 512 x 512 doubles with scale factors in a file of one MiB, read turned and copied."""
    header = nib.Nifti1Header()
    header.set_data_shape((512, 512, 512))
    header.set_data_dtype(np.float64)
    header.set_sform([[0, 0, 0.5, 0], [-0.5, 0, 0, 0], [0, 0.5, 0, 0], [0, 0, 0, 1]], code=1)
    header["vox_offset"], header["magic"], header["scl_slope"], header["scl_inter"] = 352, b"n+1", 2, 1
    with gzip.open(tmp_path / "scan.nii.gz", "wb", compresslevel=1) as stream:
        stream.write(header.binaryblock + bytes(4))
        for _ in range(512):
            stream.write(bytes(2**21))
    assert run(tmp_path, 0, seed=0) == {"largest read": 1}


def read_largest(folder: Path) -> Counter[str]:
    volume = Volume.load(folder / "scan.nii.gz")
    assert volume.array.shape == (512, 512, 512)
    assert volume.array.min() == volume.array.max() == 1
    return Counter({"largest read": 1})


if __name__ == "__main__":
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
    try:  # the limit works
        np.empty(ROOM + 2**26, dtype=np.uint8)
    except MemoryError:
        where, number, start = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
        print(json.dumps(read_all(where, number, start) if number else read_largest(where)))
    else:
        sys.exit("the limit of memory does not work here")
