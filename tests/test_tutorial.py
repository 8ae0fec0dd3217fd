"""The tutorial's commands and lines of Python, run in their order on the demo's scans at 4 mm."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from dicom_series import write_series
from typer.testing import CliRunner

from brainuad.cli import app
from brainuad.config import DataConfig
from brainuad.data.atlas import PlacedScan, place_scan
from brainuad.data.volume import Volume
from brainuad.detector import Detector
from brainuad.models.base import Inference

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "src" / "brainuad" / "assets" / "demo"
TEXT = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")

pytestmark = [pytest.mark.slow(seconds=90), pytest.mark.long]


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
        nib.save(nib.load(source).slicer[::2, ::2, ::2], folder / name)
    description = {"Name": "tutorial", "BIDSVersion": "1.10.0"}
    (folder / "bids" / "dataset_description.json").write_text(json.dumps(description))
    write_series(folder / "dicom", Volume.load(folder / "scan.nii.gz"))
    return folder


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network runs at one noise level instead of three; it and registration run once for the same image."""
    load, infer = Detector.load.__func__, Detector.infer
    known: dict[tuple[bytes, int, int], Inference] = {}

    def load_with_one_level(cls: type[Detector], *args: Any, **options: Any) -> Detector:
        loaded = load(cls, *args, **options)
        assert len(loaded.model_config.step_ensemble) == 3
        changed = loaded.with_settings(step_ensemble=(700,))
        return replace(changed, calibration=loaded.calibration, health=loaded.health)

    def infer_once(self: Detector, image: Any, mask: Any, seed: int = 0, names: Iterable[str] = ()) -> Inference:
        names = list(names)
        key = (np.asarray(image).tobytes(), seed, self.scores.draws(names), self.scores.needs_second(names))
        if key not in known:
            known[key] = infer(self, image, mask, seed, names)
        return known[key]

    placed: dict[tuple[bytes, bytes, bytes, int], PlacedScan] = {}

    def place_once(
        scan: Volume, config: DataConfig, *, brain_mask: Volume | None, seed: int, lap: Callable[[str], None]
    ) -> PlacedScan:
        mask = b"" if brain_mask is None else brain_mask.array.tobytes()
        key = (scan.array.tobytes(), scan.affine.tobytes(), mask, seed)
        if key not in placed:
            placed[key] = place_scan(scan, config, brain_mask=brain_mask, seed=seed)
        lap("brain")
        lap("place")
        return replace(placed[key], scan=scan)

    monkeypatch.setattr("brainuad.scan.pipeline.place_scan", place_once)
    monkeypatch.setattr(Detector, "load", classmethod(load_with_one_level))
    monkeypatch.setattr(Detector, "infer", infer_once)


def test_every_snippet_runs(folder: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    blocks = re.findall(r"```(console|python)\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) == 9
    # the first as it is typed, the others in this process
    (_, first), *others = blocks
    program = Path(sys.executable).with_name("brainuad")
    done = subprocess.run([program, *shlex.split(first)[1:]], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for kind, text in others:
        if kind == "python":
            Path("snippet.py").write_text(text)
            runpy.run_path("snippet.py")
            continue
        for line in text.splitlines():
            name, *words = shlex.split(line)
            assert name == "brainuad"
            result = CliRunner().invoke(app, words)
            assert result.exit_code == 0, f"{line}\n{result.output}"
    for name in ("results/report.html", "results/scan_lesions.nii.gz", "my-scanner/calibration.json"):
        assert Path(name).is_file()
    assert list(Path("results-dicom").glob("*.dcm"))
    anomaly = nib.load("bids/derivatives/brainuad/sub-01/anat/sub-01_desc-anomaly_T1w.nii.gz")
    assert anomaly.shape == nib.load("scan.nii.gz").shape
