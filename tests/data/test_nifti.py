"""Files that are refused, and odd ones that are not."""

import gzip
import os
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainuad.data.nifti import _blocks, read_nifti
from brainuad.data.volume import Volume
from brainuad.errors import InputError

FILES = Path(__file__).parent.parent / "files"
SCAN = FILES / "ixi013_t1_4mm.nii.gz"

BYTES = gzip.decompress(SCAN.read_bytes())  # 352 bytes of header, then unsigned 8-bit values
ARRAY = np.asarray(nib.load(SCAN).dataobj)
AFFINE = nib.load(SCAN).affine


def saved(array: np.ndarray, affine: np.ndarray = AFFINE, scale: tuple[float, float] | None = None) -> bytes:
    """A valid file of any array."""
    image = nib.Nifti1Image(array, affine, dtype=array.dtype)
    if scale:
        image.header.set_slope_inter(*scale)
    return image.to_bytes()


def edited(**fields: Any) -> bytes:
    """The scan with fields of its header set, whatever they mean."""
    header = nib.Nifti1Header(BYTES[:348])
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + BYTES[348:]


def with_nan() -> bytes:
    array = ARRAY.astype(np.float32)
    array[1, 2, 3], array[4, 5, 6] = np.nan, -np.inf
    return saved(array)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


NO_FORM = {"sform_code": 0, "qform_code": 1}
BAD_FILES: dict[str, tuple[str, Callable[[], bytes], str]] = {
    # kind: (name, contents, message)
    "empty": ("a.nii", lambda: b"", "is empty"),
    "empty gz": ("a.nii.gz", lambda: b"", "is empty"),
    "gzip of nothing": ("a.nii.gz", lambda: gzip.compress(b""), "not a readable NIfTI file by its first bytes"),
    "text": ("a.nii", lambda: b"not an image, whatever its name" * 20, "not a readable NIfTI file by its first bytes"),
    "text called gz": ("a.nii.gz", lambda: b"not an image", "not compressed by gzip, against its name"),
    "plain called gz": ("a.nii.gz", lambda: BYTES, r"not compressed .* rename it to end in \.nii$"),
    "gz called plain": ("a.nii", SCAN.read_bytes, r"readable NIfTI file: compressed .* rename it to end in \.nii\.gz"),
    "truncated": ("a.nii", lambda: BYTES[:20000], "is truncated: 20000 bytes cannot hold the 162000 bytes"),
    "truncated header": ("a.nii", lambda: BYTES[:200], "is truncated: 200 bytes of a header of 348"),
    "truncated gz": ("a.nii.gz", lambda: SCAN.read_bytes()[:20000], "truncated or damaged"),
    "gz of truncated": ("a.nii.gz", lambda: gzip.compress(BYTES[:99000]), "is truncated: 63352 of 162000 bytes"),
    "corrupt gz": ("a.nii.gz", lambda: flipped(SCAN.read_bytes(), 30000), "damaged|not a readable NIfTI"),
    "wrong checksum": ("a.nii.gz", lambda: flipped(SCAN.read_bytes(), -8), r"damaged \(CRC check failed"),
    "gzip bomb": ("a.nii.gz", lambda: gzip.compress(BYTES + bytes(2**25), 1), "expands to more than the 162000"),
    "wrong magic": ("a.nii", lambda: edited(magic=b"n+9"), r"by its magic b'n\+9"),
    "header of a pair": ("a.nii", lambda: edited(magic=b"ni1"), "header of a pair"),
    "half of a pair": ("a.img", lambda: BYTES[352:], "half of a pair"),
    "FreeSurfer": ("a.mgz", lambda: b"\x1f\x8b", "mri_convert a.mgz"),
    "NRRD": ("a.nrrd", lambda: b"NRRD0004", "not a readable NIfTI file by its name"),
    "2-D": ("a.nii", lambda: saved(ARRAY[0]), r"shape \(60, 45\); a volume of three"),
    "4-D": ("a.nii", lambda: saved(np.stack([ARRAY] * 2, -1)), r"shape \(60, 60, 45, 2\); a volume of three"),
    "one slice": ("a.nii", lambda: saved(ARRAY[:, :, :1]), r"shape \(60, 60, 1\); a volume of three"),
    "no axes": ("a.nii", lambda: edited(dim=0), "a volume of three"),
    "negative axis": ("a.nii", lambda: edited(dim=[3, 60, -60, 45, 1, 1, 1, 1]), "a volume of three"),
    "3000^3": ("a.nii", lambda: edited(dim=[3, 3000, 3000, 3000, 1, 1, 1, 1]), "3000 x 3000 x 3000 voxels, too many"),
    "500^3 of nothing": (
        "a.nii.gz",
        lambda: gzip.compress(edited(dim=[3, 500, 500, 500, 1, 1, 1, 1])),
        "cannot hold the 125000000 bytes",
    ),
    "colours": (
        "a.nii",
        lambda: saved(np.zeros((4, 5, 6), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))),
        "holds colours; real numbers",
    ),
    "complex": ("a.nii", lambda: saved(ARRAY.astype(np.complex64)), "complex64 values; real numbers"),
    "unknown type": ("a.nii", lambda: edited(datatype=77), "damaged: data code 77"),
    "NaN": ("a.nii", with_nan, "holds 2 NaN or infinite values"),
    "scaled to infinity": ("a.nii", lambda: edited(scl_slope=3e38, scl_inter=3e38), "NaN or infinite values"),
    "infinite scale": ("a.nii", lambda: edited(scl_slope=1, scl_inter=np.inf), "damaged: .*inter"),
    "scaled to enormous": ("a.nii", lambda: edited(scl_slope=1e20), r"values as large as 2\.6e\+22"),
    "int64 overflow": ("a.nii", lambda: saved(ARRAY.astype(np.int64) << 55), r"values as large as 9\.2e\+18"),
    "zero zoom": ("a.nii", lambda: edited(pixdim=[1, 4, 0, 4, 0, 0, 0, 0]), "voxels of 4 x 0 x 4 mm"),
    "negative zoom": ("a.nii", lambda: edited(pixdim=[1, -4, 4, 4, 0, 0, 0, 0]), "voxels of -4 x 4 x 4 mm"),
    "NaN zoom": ("a.nii", lambda: edited(pixdim=[1, np.nan, 4, 4, 0, 0, 0, 0]), "voxels of nan x 4 x 4 mm"),
    "metres": ("a.nii", lambda: saved(ARRAY, np.diag([0.004, 0.004, 0.004, 1])), "voxels of 0.004 x 0.004"),
    "singular affine": ("a.nii", lambda: edited(srow_x=0, sform_code=1), "affine that cannot be inverted"),
    "flat affine": (
        "a.nii",
        lambda: edited(srow_x=[4, 4, 0, 0], srow_y=[4, 4.001, 0, 0], srow_z=[0, 0, 4, 0], sform_code=1),
        "affine that cannot be inverted",
    ),
    "NaN affine": ("a.nii", lambda: edited(srow_y=np.nan, sform_code=1), "NaN or infinite values in its affine"),
    "NaN quaternion": ("a.nii", lambda: edited(quatern_b=np.nan, **NO_FORM), "NaN or infinite|damaged"),
    "impossible quaternion": ("a.nii", lambda: edited(quatern_b=3, **NO_FORM), "damaged: w2 should be positive"),
    "far off": ("a.nii", lambda: saved(ARRAY, AFFINE + np.outer([1, 0, 0, 0], [0, 0, 0, 1e9])), "more than 100 m off"),
    "values behind the end": ("a.nii", lambda: edited(vox_offset=1e9), "at byte 1e.09, outside the file"),
    "values before the start": ("a.nii", lambda: edited(vox_offset=-352), "damaged: vox offset|outside the file"),
    "values nowhere": ("a.nii", lambda: edited(vox_offset=np.nan), "outside the file|damaged"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_is_refused_with_its_fault_and_a_remedy(tmp_path, kind):
    name, contents, message = BAD_FILES[kind]
    path = tmp_path / name
    path.write_bytes(contents())
    with pytest.raises(InputError, match=message) as raised:
        Volume.load(path)
    assert str(raised.value).startswith(str(path))
    assert raised.value.remedy
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("turned", "codes", "told"),
    [
        ((-1, 1, 1), (1, 1), True),
        ((-1, -1, 1), (1, 1), True),
        ((1, 1, 1), (1, 1), False),
        ((-1, 1, 1), (1, 0), False),
        ((-1, 1, 1), (0, 1), False),
    ],
)
def test_affines_that_contradict_each_other_on_left_and_right_are_told(tmp_path, caplog, turned, codes, told):
    image = nib.Nifti1Image(ARRAY, AFFINE)
    image.set_sform(AFFINE, codes[0])
    image.set_qform(AFFINE @ np.diag([*turned, 1]), codes[1])
    nib.save(image, tmp_path / "scan.nii")
    Volume.load(tmp_path / "scan.nii")
    assert (caplog.messages != []) is told
    assert all("scan.nii: its sform and its qform contradict each other" in line for line in caplog.messages)


def test_what_is_no_file_is_refused(tmp_path):
    (tmp_path / "folder.nii").mkdir()
    (tmp_path / "link.nii").symlink_to(tmp_path / "gone.nii")
    (tmp_path / "loop.nii").symlink_to(tmp_path / "loop.nii")
    os.mkfifo(tmp_path / "pipe.nii")  # which opening would wait for
    for name, fault in {
        "missing.nii": "no such file",
        "folder.nii": "is a folder",
        "link.nii": "a link to a file that is missing",
        "loop.nii": "cannot be read",
        "pipe.nii": "not a regular file",
        "a" * 300 + ".nii": "cannot be read",
    }.items():
        with pytest.raises(InputError, match=fault):
            Volume.load(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused(tmp_path):
    shutil.copy(SCAN, tmp_path / "secret.nii.gz")
    (tmp_path / "secret.nii.gz").chmod(0)
    with pytest.raises(InputError, match="Permission denied"):
        Volume.load(tmp_path / "secret.nii.gz")


def test_root_too_is_told_when_a_file_cannot_be_opened_or_read(monkeypatch):
    def forbidden(path, mode):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", forbidden)
        with pytest.raises(InputError, match=r"Permission denied.*permissions"):
            Volume.load(SCAN)

    def broken(stream, length=-1):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(gzip.GzipFile, "read", broken)
    with pytest.raises(InputError, match="Input/output error"):
        Volume.load(SCAN)


def test_odd_but_sound_files_are_read(tmp_path):
    reference = Volume.load(SCAN).array
    odd = {
        "text that is no UTF-8": edited(descrip=b"\xff\xfe\x80Gr\xf6\xdfe", intent_name=b"\xc3"),
        "trailing bytes": BYTES + b"trailing",
        "constant": saved(np.full_like(ARRAY, 7)),
        "zero": saved(np.zeros_like(ARRAY)),
        "64-bit integers": saved(ARRAY.astype(np.int64)),
        "doubles": saved(ARRAY.astype(np.float64)),
    }
    for name, contents in odd.items():
        (tmp_path / "scan.nii").write_bytes(contents)
        volume = Volume.load(tmp_path / "scan.nii")
        expected = {"constant": np.full_like(reference, 7), "zero": np.zeros_like(reference)}.get(name, reference)
        np.testing.assert_array_equal(volume.array, expected, err_msg=name)
        volume.save(tmp_path / "again.nii.gz")
        np.testing.assert_array_equal(Volume.load(tmp_path / "again.nii.gz").array, expected, err_msg=name)


@settings(max_examples=50, deadline=None)
@given(shape=st.tuples(*[st.integers(1, 3000)] * 3), itemsize=st.sampled_from([1, 2, 8]))
def test_values_are_read_in_order_and_small_blocks(shape: tuple[int, int, int], itemsize: int) -> None:
    done = 0
    for rows, planes in _blocks(shape, itemsize):
        first, last = (part.indices(length) for part, length in zip((rows, planes), shape[1:], strict=True))
        assert first[0] * shape[0] + last[0] * shape[0] * shape[1] == done
        lengths = [stop - start for start, stop, _ in (first, last)]
        assert lengths[1] == 1 or lengths[0] == shape[1]
        size = shape[0] * lengths[0] * lengths[1]
        assert size * itemsize <= max(2**22, shape[0] * itemsize)
        done += size
    assert done == shape[0] * shape[1] * shape[2]


def test_large_planes_are_read_row_by_row(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(900, 700, 2))  # a plane of 5 MB
    (tmp_path / "flat.nii").write_bytes(saved(array, scale=(2.0, 1.0)))
    tracemalloc.start()
    found, _ = read_nifti(tmp_path / "flat.nii")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_allclose(found, 2 * array + 1, rtol=1e-6)
    assert peak < 4 * array.size + 3.5 * 2**22
