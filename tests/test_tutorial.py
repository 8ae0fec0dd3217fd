"""The tutorial's commands and lines of Python, run in their order on the demo's scans."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import pytest
from dicom_series import write_series

from brainuad.data.volume import Volume

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "src" / "brainuad" / "assets" / "demo"
TEXT = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the tutorial speaks of."""
    folder = tmp_path_factory.mktemp("tutorial")
    stroke = DEMO / "IXI202_stroke_t1.nii.gz"
    healthy = [DEMO / f"IXI{number}_t1.nii.gz" for number in ("067", "096", "097")]
    bids = "bids/sub-01/anat/sub-01_T1w.nii.gz"
    for name, source in {
        "scan.nii.gz": stroke,
        "mask.nii.gz": DEMO / "IXI202_stroke_mask.nii.gz",
        "scans/one.nii.gz": stroke,
        "scans/two.nii.gz": DEMO / "patient19_t1.nii.gz",
        **{f"healthy/{path.name}": path for path in healthy},
        bids: stroke,
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.load(source), folder / name)
    description = {"Name": "tutorial", "BIDSVersion": "1.10.0"}
    (folder / "bids" / "dataset_description.json").write_text(json.dumps(description))
    write_series(folder / "dicom", Volume.load(stroke))
    return folder


def test_every_snippet_runs(folder: Path) -> None:
    blocks = re.findall(r"```(console|python)\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) == 9
    for kind, text in blocks:
        if kind == "python":
            commands = [[sys.executable, "-c", text]]
        else:
            commands = [
                [str(Path(sys.executable).parent / "brainuad"), *shlex.split(line)[1:]]
                for line in text.splitlines()
            ]
        for command in commands:
            result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            assert result.returncode == 0, f"{text}\n{result.stderr}"
    for name in ("results/report.html", "results/scan_lesions.nii.gz", "my-scanner/calibration.json"):
        assert (folder / name).is_file()
    assert list((folder / "results-dicom").glob("*.dcm"))
    anomaly = nib.load(folder / "bids/derivatives/brainuad/sub-01/anat/sub-01_desc-anomaly_T1w.nii.gz")
    assert anomaly.shape == nib.load(folder / "scan.nii.gz").shape
