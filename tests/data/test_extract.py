from pathlib import Path

import numpy as np
import pytest

from brainuad.data.extract import brain_mask, correct_bias
from brainuad.data.volume import Volume

FILES = Path(__file__).parent.parent / "files"
DEMO = Path(__file__).parents[2] / "src/brainuad/assets/demo"


def test_a_known_bias_field_is_removed():
    volume = Volume.load(DEMO / "patient07_t1.nii.gz")
    mask = Volume.load(DEMO / "patient07_mask.nii.gz").array > 0
    x, y, z = (np.linspace(-1, 1, size) for size in volume.array.shape)
    field = np.exp(0.35 * x[:, None, None] - 0.3 * y[None, :, None] * z[None, None, :])
    clean = correct_bias(volume, mask)
    corrected = correct_bias(volume.with_array(volume.array * field), mask)

    def unevenness(array: np.ndarray) -> float:
        tissue = mask & (clean > np.percentile(clean[mask], 60))  # white matter, mostly
        return float(np.std(np.log(array[tissue] / clean[tissue])))

    assert unevenness(volume.array * field) > 0.1
    assert unevenness(corrected) < 0.3 * unevenness(volume.array * field)
    assert not corrected[~mask].any()


def test_a_parcellation_gets_its_sulci_back():
    scan, given = Volume.load(FILES / "ixi013_t1_4mm.nii.gz"), Volume.load(FILES / "ixi013_mask_4mm.nii.gz")
    mask = brain_mask(scan, given)
    assert (mask >= (given.array > 0)).all()
    assert 1.0 < mask.sum() / (given.array > 0).sum() < 1.25


def test_an_extracted_brain_needs_no_mask():
    scan, given = Volume.load(FILES / "mslub19_t1_4mm.nii.gz"), Volume.load(FILES / "mslub19_mask_4mm.nii.gz")
    found, expected = brain_mask(scan), given.array > 0
    assert 2 * (found & expected).sum() / (found.sum() + expected.sum()) > 0.95


def test_a_whole_head_without_mask_and_an_empty_mask_are_refused():
    scan = Volume.load(FILES / "ixi013_t1_4mm.nii.gz")
    with pytest.raises(ValueError, match="does not look brain-extracted"):
        brain_mask(scan.with_array(scan.array + 50))
    with pytest.raises(ValueError, match="empty"):
        brain_mask(scan, scan.with_array(scan.array * 0))


def test_what_n4_refuses_is_one_clear_line():
    tiny = Volume.from_array(np.ones((3, 3, 3), np.float32), np.eye(4))
    with pytest.raises(ValueError, match=r"^bias correction failed \(.+\)$"):
        correct_bias(tiny, tiny.array > 0)
