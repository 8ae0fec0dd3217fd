"""``brainuad score`` as a user types it."""

from __future__ import annotations

import csv
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from commands import run, typed
from dicom_series import write_series
from tiny import FILES, IMAGE, MASK, tiny_detector

import brainuad
from brainuad.data.volume import Volume

HEAD = FILES / "ixi013_t1_4mm.nii.gz"
PLACE = (
    "dim", "pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y",
    "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units",
)  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_detector().save(folder)
    return folder


def oblique_scan(path: Path) -> None:
    """A scan in the axes P-S-R, oblique, of 16-bit integers with a scale factor, its sform unlike its qform."""
    image = nib.load(IMAGE)
    turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt("PSR"))
    turned = image.as_reoriented(turn)
    angle = np.deg2rad(14)
    tilt = np.eye(4)
    tilt[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    stored = np.rint(turned.get_fdata() / turned.get_fdata().max() * 3000).astype(np.int16)
    made = nib.Nifti1Image(stored, None)
    made.header.set_qform(turned.affine, code=1)
    made.header.set_sform(tilt @ turned.affine, code=4)
    made.header.set_xyzt_units("mm")
    made.header.set_slope_inter(0.37, 0)
    nib.save(made, path)


@pytest.fixture(scope="module")
def scored(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any]:
    """Folder of scans, folder of results, what was printed; one scan of two is damaged."""
    folder = tmp_path_factory.mktemp("score")
    scans, out = folder / "scans", folder / "out"
    scans.mkdir()
    oblique_scan(scans / "oblique.nii.gz")
    (scans / "damaged.nii.gz").write_bytes(IMAGE.read_bytes()[:5000])
    printed = run("score", scans, "-o", out, "--model", model, "--fpr", "0.05", "--json", code=3)
    return scans, out, json.loads(printed.stdout)


def test_every_map_lies_exactly_on_its_scan(scored):
    scans, out, _ = scored
    scan = nib.load(scans / "oblique.nii.gz")
    for kind, dtype in {"anomaly": "f4", "lesions": "u1", "reconstruction": "f4", "brain": "u1"}.items():
        image = nib.load(out / f"oblique_{kind}.nii.gz")
        assert image.get_data_dtype() == np.dtype(dtype)
        assert image.dataobj.slope == 1
        assert image.shape == scan.shape
        for field in PLACE:
            assert image.header[field].tobytes() == scan.header[field].tobytes(), (kind, field)
        np.testing.assert_array_equal(image.affine, scan.affine)


def test_findings_are_what_the_files_show(scored):
    _, out, printed = scored
    sidecar = json.loads((out / "oblique.json").read_text())
    anomaly, labels, brain = (
        nib.load(out / f"oblique_{kind}.nii.gz").get_fdata() for kind in ("anomaly", "lesions", "brain")
    )
    assert sidecar["calibration"]["threshold"] == 0.6
    assert not labels[anomaly <= np.float32(0.6)].any()
    assert not anomaly[brain == 0].any()
    assert sidecar["brain"]["source"] == "extracted"
    voxel_ml = abs(np.linalg.det(nib.load(IMAGE).affine)) / 1000
    assert sidecar["brain"]["ml"] == pytest.approx(brain.sum() * voxel_ml, rel=1e-3)
    findings = sidecar["findings"]
    assert findings, "a random network finds much"
    assert len(findings) == labels.max()
    for finding in findings:
        inside = labels == finding["label"]
        assert finding["voxels"] == inside.sum()
        assert finding["ml"] == pytest.approx(inside.sum() * voxel_ml, rel=1e-3)
        assert finding["peak"] == pytest.approx(anomaly[inside].max(), abs=1e-4)
        index = np.linalg.solve(nib.load(out / "oblique_lesions.nii.gz").affine, [*finding["centre_mm"], 1])
        assert labels[tuple(np.rint(index[:3]).astype(int))] == finding["label"]
    volumes = [finding["ml"] for finding in findings]
    assert volumes == sorted(volumes, reverse=True)
    row = next(row for row in printed["scans"] if row["name"] == "oblique")
    assert row["findings"] == len(findings)


def test_one_damaged_scan_is_told_and_the_report_made(scored):
    _, out, printed = scored
    assert {row["name"]: row["status"] for row in printed["scans"]} == {"damaged": "failed", "oblique": "done"}
    assert printed["report"] == str(out / "report.html")
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "oblique" in page
    assert "damaged" in page
    assert (out / "oblique.png").read_bytes().startswith(b"\x89PNG")
    assert not list(out.glob(".partial*"))


def test_a_rerun_skips_and_python_agrees(scored, model):
    scans, out, _ = scored
    before = (out / "oblique_anomaly.nii.gz").stat().st_mtime_ns
    text = run("score", scans / "oblique.nii.gz", "-o", out, "--model", model, "--fpr", "0.05", "--no-report").stdout
    assert text.splitlines()[0].split("\t") == [
        "name",
        "status",
        "score",
        "percentile",
        "findings",
        "rare",
        "lesion_ml",
    ]
    assert text.splitlines()[1].startswith("oblique\tdone\t")
    assert (out / "oblique_anomaly.nii.gz").stat().st_mtime_ns == before
    result = brainuad.score(scans / "oblique.nii.gz", model)
    np.testing.assert_array_equal(result.anomaly, nib.load(out / "oblique_anomaly.nii.gz").get_fdata())
    saved = json.loads(result.save(out.parent / "saved", "oblique").read_text())
    sidecar = json.loads((out / "oblique.json").read_text())
    assert saved["score"] == sidecar["score"]
    assert saved["scan"] == sidecar["scan"]
    assert {path.name for path in (out.parent / "saved").iterdir()} == {
        path.name for path in out.iterdir() if path.name.startswith("oblique")
    }


def test_a_scan_gives_the_same_as_dicom(scored, model, tmp_path):
    scans, out, _ = scored
    scan = Volume.load(scans / "oblique.nii.gz")
    write_series(tmp_path / "series", scan.with_array(np.rint(scan.array / 0.37)), plane="sagittal")
    words = ["score", tmp_path / "series", "-o", tmp_path / "out", "--model", model, "--fpr", "0.05", "--no-report"]
    run(*words)
    sidecar = json.loads((tmp_path / "out" / "series.json").read_text())
    converted, anomaly, labels = (
        Volume.load(tmp_path / "out" / sidecar["outputs"][kind]) for kind in ("scan", "anomaly", "lesions")
    )
    expected = Volume.load(out / "oblique_anomaly.nii.gz")
    np.testing.assert_allclose(converted.affine, scan.affine, atol=1e-3)
    # not equal: registration takes roundings of the affine further, by a fraction of a voxel
    assert np.corrcoef(anomaly.array.ravel(), expected.array.ravel())[0, 1] > 0.98
    segmentation = pydicom.dcmread(tmp_path / "out" / sidecar["outputs"]["segmentation"])
    assert segmentation.Modality == "SEG"
    assert len(segmentation.SegmentSequence) == len(sidecar["findings"]) == labels.array.max()
    assert segmentation.pixel_array.sum() == (labels.array > 0).sum()
    before = (tmp_path / "out" / "series_anomaly.nii.gz").stat().st_mtime_ns
    run(*words)
    assert (tmp_path / "out" / "series_anomaly.nii.gz").stat().st_mtime_ns == before


def test_a_dry_run_writes_nothing(model, tmp_path):
    shutil.copy(IMAGE, tmp_path / "one.nii.gz")
    (row,) = json.loads(run("score", tmp_path, "-o", tmp_path / "out", "--model", model, "--dry-run", "--json").stdout)
    assert row == {"name": "one", "kind": "nifti", "source": str(tmp_path / "one.nii.gz"), "result": "one.json"}
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["--score", "ssim_ensembel"],
        ["--fpr", "0.5"],
        ["--fpr", "0"],
        ["--fpr", "nan"],
        ["--jobs", "0"],
        ["--device", "tpu"],
        ["--seed", "-1"],
    ],
)
def test_wrong_usage(words, tmp_path):
    run("score", IMAGE, "-o", tmp_path / "out", *words, code=2)
    assert not (tmp_path / "out").exists()


def constant(folder: Path) -> list[Any]:
    image = nib.load(IMAGE)
    array = (np.asarray(nib.load(MASK).dataobj) > 0).astype(np.float32) * 100
    array[0, 0, :20] = range(20)  # outside: fewer different values would be a mask's
    nib.save(nib.Nifti1Image(array, image.affine), folder / "scan.nii.gz")
    return [folder / "scan.nii.gz", "--brain-mask", MASK]


def cube(folder: Path) -> list[Any]:
    array = np.zeros((60, 60, 50), np.float32)
    array[15:45, 15:45, 10:40] = 100 + np.random.default_rng(0).normal(size=(30, 30, 30))
    nib.save(nib.Nifti1Image(array, np.diag([4.0, 4, 4, 1])), folder / "scan.nii.gz")
    return [folder / "scan.nii.gz"]


def pickled(folder: Path) -> list[Any]:
    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (folder / "ran",))

    model = folder / "model"
    model.mkdir()
    shutil.copy(Path(brainuad.__file__).parent / "assets/models/lite-t1/config.yaml", model)
    (model / "model.safetensors").write_bytes(pickle.dumps({"weight": Bomb()}))
    return [IMAGE, "--model", model]


def not_a_mask(folder: Path) -> list[Any]:
    return [IMAGE, "--brain-mask", folder / "nowhere.nii.gz"]


def folder_in_the_way(folder: Path) -> list[Any]:
    (folder / "out").write_text("a file where the results should go")
    return [IMAGE]


@pytest.mark.parametrize(
    ("bad", "code", "message"),
    [
        (constant, 1, "scan.nii.gz: is constant inside the brain mask (100)"),
        (cube, 1, "shows no brain, or none that could be registered"),
        (pickled, 1, "model.safetensors: is not a safetensors file"),
        (not_a_mask, 1, "nowhere.nii.gz: no such file or folder"),
        (folder_in_the_way, 1, "cannot be written"),
    ],
)
def test_what_cannot_be_scored_says_so(bad, code, message, model, tmp_path):
    words = bad(tmp_path)
    words += [] if "--model" in words else ["--model", model]
    result = run("score", *words, "-o", tmp_path / "out", "--no-report", code=code)
    assert message in result.stderr
    assert len([line for line in result.stderr.splitlines() if message in line]) == 1
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
@pytest.mark.long
def test_a_name_that_is_no_text_is_escaped(model, tmp_path):
    """A folder in Latin-1, as old archives have it, and a scan in it that cannot be read."""
    folder = tmp_path / os.fsdecode(b"H\xe9l\xe8ne")
    folder.mkdir()
    shutil.copy(IMAGE, folder / "good.nii.gz")
    (folder / os.fsdecode(b"b\xe9te.nii.gz")).write_bytes(b"nothing")
    out = tmp_path / "out"
    words = ("score", folder, "-o", out, "--model", model, "--device", "cpu")
    assert "H\\udce9l" in typed(*words, "--dry-run").stdout
    done = typed(*words)
    assert done.returncode == 3, done.stderr
    assert "internal error" not in done.stderr
    assert (out / "report.html").is_file()
    with (out / "scores.csv").open(newline="", encoding="utf-8") as handle:
        failed, scored = csv.DictReader(handle)
    assert (scored["name"], scored["status"]) == ("good", "done")
    assert "H\\udce9l\\udce8ne/b\\udce9te.nii.gz: is not" in failed["message"]


@pytest.mark.slow
def test_a_disk_that_fills_up_is_named(model, tmp_path):
    """With a real limit on the size of files, in a process of its own."""
    words = ["score", str(IMAGE), "--brain-mask", str(MASK), "-o", str(tmp_path / "out"), "--model", str(model)]
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000));"
        f"sys.argv = ['brainuad', *{words!r}]; from brainuad.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "_anomaly.nii.gz: cannot be written (File too large)" in done.stderr
    assert "Traceback" not in done.stderr
    left = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert left == [".scores.csv.lock", "failed", "findings.csv", "run.json", "scores.csv"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stop", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.long), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_stopped_run_goes_on(stop, code, model, tmp_path):
    """Stopped after its first scan, however: what is finished stays, and a rerun does the rest."""
    (tmp_path / "scans").mkdir()
    for name in ("a", "b", "c"):
        shutil.copy(IMAGE, tmp_path / "scans" / f"{name}.nii.gz")
    words = ["score", tmp_path / "scans", "-o", tmp_path / "out", "--model", model, "--no-report"]
    program = (  # a shell may have it that interrupts are ignored
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        f"sys.argv = ['brainuad', *{[*map(str, words)]!r}]; from brainuad.cli import main; main()"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not (tmp_path / "out" / "a.json").exists():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)  # the sidecar comes before the scan's row
    process.send_signal(stop)
    _, told = process.communicate(timeout=300)
    assert process.returncode == code, told
    assert "Traceback" not in told
    assert not (tmp_path / "out" / "c.json").exists()
    finished = (tmp_path / "out" / "a_anomaly.nii.gz").stat().st_mtime_ns
    if stop == signal.SIGINT:
        assert not list((tmp_path / "out").glob(".partial*"))
        assert "a,done," in (tmp_path / "out" / "scores.csv").read_text()
    run(*words)
    assert (tmp_path / "out" / "a_anomaly.nii.gz").stat().st_mtime_ns == finished
    table = (tmp_path / "out" / "scores.csv").read_text().splitlines()[1:]
    assert [line.split(",")[:2] for line in table] == [["a", "done"], ["b", "done"], ["c", "done"]]
