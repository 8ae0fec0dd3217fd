"""Every data set from its download to a cohort that ``brainuad check`` finds fit."""

import json
import shutil
from typing import Any

import downloads
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from commands import run, typed

pytestmark = pytest.mark.slow


def printed(*words: Any, in_this_process: bool) -> Any:
    """Run a command that must succeed, and return the JSON that it prints."""
    if in_this_process:
        return json.loads(run(*words, "--json").stdout)
    done = typed(*words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("dataset", "folder", "modality", "brain", "other"),
    [
        pytest.param("ixi", "Train/ixi", "t1", "deepbet", "", marks=pytest.mark.long),
        ("brats21", "Test/Brats21", "t2", "extracted", "BraTS2021_00002"),
        pytest.param("mslub", "Test/MSLUB", "t1", "given", "cross_sectional", marks=pytest.mark.long),
        pytest.param("atlas_v2", "Test/ATLAS_v2", "t1", "deepbet", "Training/R009", marks=pytest.mark.long),
        pytest.param("wmh", "Test/WMH", "t1", "deepbet", "test", marks=pytest.mark.long),
    ],
)
def test_from_the_download_to_a_checked_cohort(tmp_path, dataset, folder, modality, brain, other):
    # one subject will do
    if dataset == "ixi":
        raw = downloads.ixi(tmp_path / "raw", scans=("IXI013-HH-1212",))
    else:
        raw = getattr(downloads, dataset)(tmp_path / "raw")
        shutil.rmtree(raw / other)
    out = tmp_path / "out"
    words = ["prepare", raw, "-o", out, "--dataset", dataset, "--modality", modality, "--spacing", 2]
    here = dataset != "ixi"  # once as a user types it
    rows = printed(*words, in_this_process=here)
    assert [row["status"] for row in rows] == ["prepared"] * len(rows)
    assert {row["brain"] for row in rows} == {brain}
    data = out / "Data" / folder
    for row in rows:
        image, mask = (nib.load(data / kind / f"{row['subject']}_{kind}.nii.gz") for kind in (modality, "mask"))
        assert image.shape == mask.shape
        assert row["alignment"] > 0.4
        assert 1200 < row["brain_ml"] < 1800
    problems = printed("check", out, "--modality", modality, in_this_process=here)
    assert not [problem for problem in problems if problem["severity"] == "error"]
    listed = [pd.read_csv(path) for path in (out / "Data/splits").glob("*.csv")]
    assert {row["subject"] for row in rows} == {name.split("_t1.nii")[0] for t in listed for name in t["img_name"]}
    if dataset != "ixi":
        lesion = nib.load(data / f"seg/{rows[0]['subject']}_seg.nii.gz")
        ml = np.count_nonzero(lesion.dataobj) * 8 / 1000
        raw_ml = raw_lesion_ml(dataset)
        assert ml == pytest.approx(raw_ml, rel=0.35)  # the atlas is somewhat larger or smaller than the head
    else:
        again = printed(*words, in_this_process=True)
        assert [row["status"] for row in again] == ["skipped"]


def raw_lesion_ml(dataset: str) -> float:
    if dataset in ("atlas_v2", "wmh", "Training/R009"):
        return float(np.count_nonzero(np.asarray(nib.load(downloads.PARCELLATION).dataobj) == 81)) * 0.064
    return float(np.count_nonzero(nib.load(downloads.LESIONS).dataobj)) * 0.064
