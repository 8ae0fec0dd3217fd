import base64
import gzip

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from scored_folder import REFERENCE, patient, save, write_scan

from brainuad.components import outlined
from brainuad.errors import InputError
from brainuad.report.display import display_grid, encode, read_display
from brainuad.report.records import read_records


def only(folder):
    (row,) = read_records(folder).rows
    return row.scored


def test_what_is_shown_lies_where_the_scan_lies(scored):
    display = read_display(only(scored))
    assert display.notes == []
    assert display.voxel == 2.0
    assert np.array_equal(display.affine[:3, :3], np.eye(3) * 2)  # the scan is oblique and stored from left to right
    for finding in only(scored).record.findings:
        region = display.volumes["findings"] == finding.label
        centre = display.affine[:3, :3] @ np.argwhere(region).mean(0) + display.affine[:3, 3]
        assert centre == pytest.approx(finding.centre_mm, abs=1.0)
        assert region.sum() * 0.008 == pytest.approx(finding.ml, rel=0.25)


def test_volumes_are_shown_in_the_right_place_and_scale(scored):
    volumes, affine = patient()
    display = read_display(only(scored))
    there = np.linalg.inv(affine) @ display.affine
    for name in ("anomaly", "reconstruction"):
        expected = ndimage.affine_transform(
            volumes[name], there[:3, :3], there[:3, 3], output_shape=display.volumes[name].shape, order=1
        )
        assert np.abs(display.volumes[name] - expected).max() < 1e-5
    inside = display.volumes["scan"][display.volumes["brain"]]
    assert (inside <= 0).mean() == pytest.approx(0.01, abs=0.005)
    assert (inside >= 1).mean() == pytest.approx(0.01, abs=0.005)


def test_a_fine_scan_is_shown_at_2_mm_and_a_coarse_one_as_it_is(tmp_path):
    volumes, affine = patient()
    for factor, expected in ((2, 2.0), (0.5, 4.0)):
        size = np.diag([1 / factor] * 3 + [1])
        shift = np.eye(4)
        shift[:3, 3] = (1 / factor - 1) / 2
        resized = {
            name: ndimage.zoom(volume.astype(np.float32), factor, order=1, grid_mode=True, mode="nearest")
            for name, volume in volumes.items()
        }
        for name in ("brain", "lesion"):
            resized[name] = resized[name] > 0.5
        folder = tmp_path / f"{factor}"
        write_scan(folder, "scan", resized, affine @ shift @ size)
        display = read_display(only(folder))
        assert display.voxel == pytest.approx(expected)
        assert display.volumes["anomaly"].max() == pytest.approx(volumes["anomaly"].max(), rel=0.35)


def test_the_grid_holds_the_brain_and_a_margin():
    with np.load(REFERENCE) as arrays:
        mask = arrays["mask"]
    _, affine = patient()
    grid, shape = display_grid(mask, affine)
    points = np.argwhere(mask) @ affine[:3, :3].T + affine[:3, 3]
    indices = (points - grid[:3, 3]) / 2
    assert (indices >= 5).all()
    assert (indices <= np.array(shape) - 6).all()
    empty, shape = display_grid(np.zeros((10, 10, 10), bool), np.diag([3.0, 3, 3, 1]))
    assert empty[0, 0] == 3
    assert min(shape) * 3 >= 30


def test_encoding_keeps_values_and_is_repeatable(scored):
    display = read_display(only(scored))
    first = 0.1 * display.volumes["anomaly"].max()
    encoded = encode(display, first)
    assert encoded == encode(display, first)
    assert set(encoded) == {"scan", "reconstruction", "anomaly", "findings", "lesion"}
    tolerance = {"scan": 0.003, "reconstruction": 0.003, "anomaly": 0.0011, "findings": 0, "lesion": 0}
    for name, text in encoded.items():
        image = nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(text)))
        assert np.array_equal(image.affine, display.affine)
        shown = np.asarray(display.volumes[name], dtype=np.float64)
        assert np.abs(np.abs(image.get_fdata()) - shown).max() <= tolerance[name]
        if name == "anomaly":
            coloured = image.get_fdata() > 0
            np.testing.assert_array_equal(coloured, outlined(display.volumes[name], first)[0] > 0)
            assert 0 < coloured.sum() < (shown > first).sum()


@pytest.mark.parametrize("ending", ["reconstruction", "lesions", "brain"])
def test_a_missing_volume_is_named_and_the_rest_shown(scored, ending):
    (scored / f"patient19_t1_{ending}.nii.gz").unlink()
    display = read_display(only(scored))
    assert len(display.notes) == 1
    assert "no such file" in display.notes[0]
    assert {"scan", "anomaly", "brain"} <= set(display.volumes)


def test_a_scan_that_has_changed_is_not_shown(scored):
    source = only(scored).source
    volumes, affine = patient()
    save(source, volumes["scan"][::-1], affine)
    display = read_display(only(scored))
    assert "scan" not in display.volumes
    assert "has changed since it was scored" in display.notes[0]


def test_a_damaged_map_is_one_clear_error(scored):
    path = scored / "patient19_t1_anomaly.nii.gz"
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"no image", gzip.compress(b"short")):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"anomaly\.nii\.gz"):
            read_display(only(scored))
    nan = nib.Nifti1Image(np.full((4, 4, 4), np.nan, np.float32), np.eye(4))
    nib.save(nan, path)
    with pytest.raises(InputError, match="not a usable volume"):
        read_display(only(scored))
    path.unlink()
    with pytest.raises(InputError, match="no such file"):
        read_display(only(scored))
