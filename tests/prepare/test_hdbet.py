import shutil
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hdbet_stand_in import stand_in

from brainuad.data.volume import Volume
from brainuad.errors import InputError
from brainuad.prepare.hdbet import hdbet_mask

FILES = Path(__file__).parent.parent / "files"
HEAD = Volume.load(FILES / "ixi013_t1_4mm.nii.gz")


@pytest.fixture(autouse=True)
def path(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def test_the_mask_is_what_the_program_wrote_and_it_is_called_as_its_authors_say(tmp_path):
    mask = FILES / "ixi013_mask_4mm.nii.gz"
    stand_in(tmp_path / "bin", f"cp $2 {tmp_path / 'seen.nii.gz'}; cp {mask} ${{4%.nii.gz}}_bet.nii.gz; echo talk")
    found = hdbet_mask(HEAD)
    assert found.dtype == bool
    np.testing.assert_array_equal(found, Volume.load(mask).array > 0)
    called = (tmp_path / "bin/calls").read_text().split()
    assert called[0::2][:2] == ["-i", "-o"]
    assert called[4:] == ["-device", "cpu", "--disable_tta", "--save_bet_mask", "--no_bet_image"]
    seen = nib.load(tmp_path / "seen.nii.gz")
    np.testing.assert_array_equal(seen.get_fdata(), nib.load(FILES / "ixi013_t1_4mm.nii.gz").get_fdata())
    assert not Path(called[1]).parent.exists()  # nothing is left behind


def test_a_gpu_is_used_where_there_is_one(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    stand_in(tmp_path / "bin", f"cp {FILES / 'ixi013_mask_4mm.nii.gz'} ${{4%.nii.gz}}_bet.nii.gz")
    assert hdbet_mask(HEAD).any()
    called = (tmp_path / "bin/calls").read_text().split()
    assert called[4:] == ["-device", "cuda", "--save_bet_mask", "--no_bet_image"]


@pytest.mark.parametrize(
    ("action", "fault"),
    [
        ("echo working >&2; echo 'CUDA out of memory' >&2; exit 3", r"exit code 3 \(CUDA out of memory\)"),
        ("exit 1", "it said nothing"),
        ("exit 0", "wrote no brain mask"),
        (f"cp {FILES / 'mslub19_mask_4mm.nii.gz'} ${{4%.nii.gz}}_bet.nii.gz", "another grid"),
        (f"cp {FILES / 'README.md'} ${{4%.nii.gz}}_bet.nii.gz", "not a readable NIfTI|damaged"),
    ],
)
def test_what_goes_wrong_is_said_in_one_line(tmp_path, action, fault):
    stand_in(tmp_path / "bin", action)
    with pytest.raises((ValueError, InputError), match=fault) as raised:
        hdbet_mask(HEAD)
    assert "\n" not in str(raised.value)


def test_an_empty_mask_is_no_brain(tmp_path):
    HEAD.with_array(np.zeros_like(HEAD.array)).save(tmp_path / "empty.nii.gz", np.uint8)
    stand_in(tmp_path / "bin", f"cp {tmp_path / 'empty.nii.gz'} ${{4%.nii.gz}}_bet.nii.gz")
    with pytest.raises(ValueError, match="found no brain"):
        hdbet_mask(HEAD)


def test_a_program_that_hangs_is_ended_with_what_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr("brainuad.prepare.hdbet.TIME_LIMIT", 0.5)
    stand_in(tmp_path / "bin", f"(sleep 2; touch {tmp_path / 'alive'}) & sleep 60")
    with pytest.raises(ValueError, match=r"longer than 0\.5 s"):
        hdbet_mask(HEAD)
    time.sleep(2.2)
    assert not (tmp_path / "alive").exists()


def test_without_the_program_it_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shutil.which("hd-bet") is None
    with pytest.raises(InputError, match=r"hd-bet: is not installed\. pip install hd-bet"):
        hdbet_mask(HEAD)
