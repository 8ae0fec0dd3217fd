from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from paper_layout import FILES

from brainuad.data.bias import bias_levels_of, warn_of_other_bias_levels, with_bias_levels
from brainuad.data.cohort import Case
from brainuad.data.volume import Volume

SCAN = FILES / "ixi013_t1_4mm.nii.gz"


def case(path: Path) -> Case:
    return Case(subject=path.stem, dataset="ixi", split="val", image=path, mask=path, lesion=None, label=0, age=None)


def test_a_file_says_how_it_was_corrected_and_so_does_what_is_made_of_it(tmp_path: Path) -> None:
    volume = with_bias_levels(Volume.load(SCAN), 1)
    volume.save(tmp_path / "one.nii.gz")
    Volume.load(tmp_path / "one.nii.gz").with_array(volume.array * 2).save(tmp_path / "twice.nii.gz")
    assert [bias_levels_of(tmp_path / name) for name in ("one.nii.gz", "twice.nii.gz")] == [1, 1]


def test_a_file_that_does_not_say_or_cannot_be_read(tmp_path: Path) -> None:
    assert bias_levels_of(SCAN) is None
    whole = gzip.decompress(SCAN.read_bytes())
    damaged = [b"", b"\x1f\x8b", b"no image", gzip.compress(whole[:100]), gzip.compress(whole)[:60]]
    damaged += [gzip.compress(b"\xff" * 348), gzip.compress(bytes(348))]
    for content in damaged:
        (tmp_path / "damaged.nii.gz").write_bytes(content)
        assert bias_levels_of(tmp_path / "damaged.nii.gz") is None
    assert bias_levels_of(tmp_path / "nowhere.nii.gz") is None


def test_scans_of_another_correction_are_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for levels in (1, 4):
        with_bias_levels(Volume.load(SCAN), levels).save(tmp_path / f"{levels}.nii.gz")
    cases = [case(path) for path in (SCAN, tmp_path / "1.nii.gz", tmp_path / "4.nii.gz")]
    warn_of_other_bias_levels(cases[:2], 1)
    assert caplog.messages == []
    warn_of_other_bias_levels(cases, 1)
    (message,) = caplog.messages
    assert message.startswith("1 of 3 scans were prepared with another bias correction")
    assert "4.nii.gz: 4 levels, not 1" in message
