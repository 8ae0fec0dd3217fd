"""The commands as a user types them: what they print where, and how they end."""

from __future__ import annotations

import errno
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from paper_layout import build_tree
from typer.testing import CliRunner

import brainuad.data.check
import brainuad.demo
import brainuad.detector
import brainuad.experiment
from brainuad import console
from brainuad.cli import app
from brainuad.cli.options import DEVICES
from brainuad.config import DataConfig, ModelConfig
from brainuad.detector import Detector
from brainuad.errors import InputError
from brainuad.models import DiffusionModel

FILES = Path(__file__).parent / "files"
COMMANDS = ("prepare", "check", "train", "evaluate", "demo")


def run(*words: Any, code: int = 0) -> Any:
    """Run a command in this process; it must end with ``code`` and without a traceback."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.stdout + result.stderr
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.stdout + result.stderr
    return result


def typed(*words: Any) -> subprocess.CompletedProcess[str]:
    """Run the installed program."""
    program = Path(sys.executable).with_name("brainuad")
    return subprocess.run([program, *map(str, words)], capture_output=True, text=True, check=False)


def change(path: Path, function: Callable[[np.ndarray], np.ndarray]) -> None:
    image = nib.load(path)
    nib.save(nib.Nifti1Image(function(np.asarray(image.dataobj, dtype=np.float32)), image.affine), path)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:2000])


DAMAGES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "mismatch": ("mask", lambda path: change(path, lambda array: array[..., 1:]), "shape (40, 48, 29)"),
    "empty": ("mask", lambda path: change(path, np.zeros_like), "is empty"),
    "holes": ("image", lambda path: change(path, lambda array: np.where(array > 200, np.nan, array)), "NaN"),
    "constant": ("image", lambda path: change(path, lambda array: np.full_like(array, 7)), "constant"),
    "flat": ("image", lambda path: change(path, lambda array: array[:, :, 15]), "three dimensions"),
    "series": (
        "image",
        lambda path: change(path, lambda array: np.stack([array, array], -1)),
        "three dimensions",
    ),
    "truncated": ("image", truncate, "truncated or damaged"),
    "text": ("image", lambda path: path.write_text("no image"), "not a readable NIfTI file"),
    "missing": ("image", Path.unlink, "no such file"),
    "folder": ("image", lambda path: (path.unlink(), path.mkdir()), ""),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def logging_restored() -> Iterator[None]:
    """A command sends messages to the stderr it finds, which here is gone after the test."""
    root, handlers, level = logging.getLogger(), logging.getLogger().handlers[:], console.logger.level
    yield
    root.handlers[:] = handlers
    console.logger.setLevel(level)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return build_tree(tmp_path / "data")


def damage(data_dir: Path, name: str) -> Path:
    """Damage the image or the mask of the test patient and return its path."""
    kind, spoil, _ = DAMAGES[name]
    path = data_dir / f"Data/Test/MSLUB/{'t1' if kind == 'image' else 'mask'}/patient19-T1.nii.gz"
    spoil(path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run with one tiny model."""
    config = ModelConfig(
        unet_dim=8, dim_mults=(1, 2), num_res_blocks=1, attention_head_dim=8, sigma_ens=(0.5, 1.1)
    )
    torch.manual_seed(3)
    data = DataConfig(
        imageDim=(40, 48, 30), smoothing_iterations=0, cache_dir=str(tmp_path_factory.mktemp("cache"))
    )
    folder = tmp_path_factory.mktemp("run")
    Detector(DiffusionModel(config).requires_grad_(False).eval(), config, data).save(folder / "fold0/model")
    return folder


def test_help_and_version() -> None:
    assert run("--version").stdout == "brainuad 0.1.0\n"
    text = run("--help").stdout
    assert all(f"\n  {command} " in text for command in COMMANDS)
    assert "Commands:" in run(code=2).output
    for command in ("prepare", "check", "evaluate", "demo"):
        assert (
            f"Usage: brainuad {command}"
            in CliRunner().invoke(app, [command, "-h"], prog_name="brainuad").stdout
        )
    assert "Configuration groups" in run("train", "--help").output


def test_importing_the_command_line_imports_nothing_slow() -> None:
    slow = {"torch", "lightning", "diffusers", "pandas", "SimpleITK", "scipy", "hydra", "matplotlib"}
    program = f"import sys, brainuad.cli; print(sorted({slow!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_installed_program(tmp_path: Path) -> None:
    done = typed("check", tmp_path / "nowhere", "--modality", "t3")
    assert (done.returncode, done.stdout) == (2, "")
    assert "'t3' is none of t1, t2" in done.stderr
    done = typed("prepare", tmp_path / "nowhere", "--dataset", "ixi", "-o", tmp_path / "out")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"brainuad: error: {tmp_path / 'nowhere'}: no such file or folder.")
    assert done.stderr.count("\n") == 1
    assert (
        "Traceback" in typed("--debug", "prepare", tmp_path / "no", "--dataset", "ixi", "-o", tmp_path).stderr
    )


@pytest.mark.parametrize(
    "words",
    [
        ("nonsense",),
        ("prepare", "RAW"),
        ("prepare", "RAW", "-o", "OUT", "--dataset", "adni"),
        ("prepare", "RAW", "-o", "OUT", "--dataset", "ixi", "--spacing", "3"),
        ("check",),
        ("check", "DATA", "--fold", "-1"),
        ("evaluate", "lite-t1", "DATA"),
        ("demo", "--seed", "x"),
        ("demo", "--device", "tpu"),
        ("check", "DATA", "--jobs", "0"),
        ("train", "no.such.setting=1"),
    ],
)
def test_wrong_usage(words: tuple[str, ...]) -> None:
    result = run(*words, code=2)
    assert "error" in result.stderr.lower()
    assert result.stdout == ""


def test_devices_are_those_of_the_detector() -> None:
    assert DEVICES == brainuad.detector.DEVICES


def test_check_of_a_sound_cohort(data_dir: Path) -> None:
    lines = run("check", data_dir, "--fold", 0).stdout.splitlines()
    assert lines[-1] == "0 errors, 1 warnings"
    (problem,) = json.loads(run("check", data_dir, "--json").stdout)
    assert problem["severity"] == "warning"
    assert "WMH_test.csv" in problem["fault"]


@pytest.mark.parametrize("name", [name for name in DAMAGES if name != "folder"])
def test_check_names_a_damaged_file(data_dir: Path, name: str) -> None:
    path = damage(data_dir, name)
    lines = run("check", data_dir, code=1).stdout.splitlines()
    line = next(line for line in lines if line.startswith("error: "))
    assert str(path) in line
    assert DAMAGES[name][2] in line


def test_check_with_processes_says_the_same(data_dir: Path) -> None:
    damage(data_dir, "truncated")
    words = ("check", data_dir, "--json")
    assert run(*words, "--jobs", 2, code=1).stdout == run(*words, code=1).stdout


def test_check_ends_with_an_error_where_subjects_leak(data_dir: Path) -> None:
    splits = data_dir / "Data/splits"
    shutil.copyfile(splits / "MSLUB_test.csv", splits / "MSLUB_val.csv")
    shown = run("check", data_dir, code=1).stdout
    assert "MSLUB patient19 is in val and test. Remove its rows" in shown
    assert "1 errors" in shown


def test_check_of_a_bad_table(data_dir: Path, tmp_path: Path) -> None:
    table = data_dir / "Data/splits/MSLUB_test.csv"
    table.write_text("img_name,age\npatient19,40\n")
    assert "MSLUB_test.csv: lacks the columns img_path" in run("check", data_dir, code=1).stdout
    manifest = tmp_path / "scans.csv"
    manifest.write_text("subject,image\nA,a.nii.gz\n")
    assert "lacks the columns label, mask, seg, split" in run("check", manifest, code=1).stdout
    assert "no such file" in run("check", tmp_path / "other.csv", code=1).stdout


def test_evaluate(model: Path, data_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = (
        "evaluate",
        model,
        data_dir,
        "-o",
        out,
        "--device",
        "cpu",
        "--scores",
        "l1",
        "--scores",
        "ssim_ensemble",
    )
    shown = run(*words).stdout
    scores = ["random", "intensity_bright", "intensity_dark", "l1", "ssim_ensemble"]
    assert [line.split()[:2] for line in shown.splitlines()[:11]] == [
        ["set", "score"], *(["IXI", score] for score in scores), *(["MSLUB", score] for score in scores),
    ]  # fmt: skip
    assert str(out / "cases.csv") in shown
    summary = json.loads(run(*words, "--json").stdout)
    assert "intensity_atlas needs 3 healthy validation scans" in summary["notes"][0]
    table = pd.read_csv(out / "cases.csv").set_index(["case", "score", "space", "metric", "threshold"])
    dice = table["value"].xs(("patient19", "l1", "model", "best_dice")).item()
    figures = summary["figures"]["MSLUB"]["test"]["l1"]["model"]["any"]["best_dice"]
    assert figures["mean"] == pytest.approx(dice)
    assert f"{dice:.4f}" in shown.splitlines()[9]


def test_evaluate_leaves_out_leaks(model: Path, data_dir: Path, tmp_path: Path) -> None:
    splits = data_dir / "Data/splits"
    shutil.copyfile(splits / "MSLUB_test.csv", splits / "MSLUB_val.csv")
    result = run("evaluate", model, data_dir, "-o", tmp_path / "out", "--sets", "MSLUB", "--device", "cpu")
    assert "left out 1 rows" in result.stderr
    table = pd.read_csv(tmp_path / "out/cases.csv")
    assert set(zip(table["case"], table["split"], strict=True)) == {("patient19", "test")}


def model_for_t2(model: Path, folder: Path) -> Path:
    """A copy of the model of a run that says it is for T2."""
    copy = folder / "t2"
    shutil.copytree(model / "fold0/model", copy)
    text = (copy / "config.yaml").read_text()
    assert "mode: t1" in text
    (copy / "config.yaml").write_text(text.replace("mode: t1", "mode: t2"))
    return copy


def test_evaluate_t2_where_no_healthy_subject_has_one(model: Path, data_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(data_dir / "Data/Test/MSLUB/t1", data_dir / "Data/Test/MSLUB/t2")
    for path in (data_dir / "Data/Test/MSLUB/t2").iterdir():
        path.rename(path.with_name(path.name.replace("T1", "T2")))
    config = model_for_t2(model, tmp_path)
    result = run("evaluate", config, data_dir, "-o", tmp_path / "out", "--modality", "t2", "--device", "cpu")
    assert "1 subjects have no T2 scan (IXI552)" in result.stderr
    assert ["MSLUB", "ssim_ensemble", "1"] in [line.split()[:3] for line in result.stdout.splitlines()]


@pytest.mark.parametrize("name", DAMAGES)
def test_evaluate_goes_on_after_a_damaged_scan(
    model: Path, data_dir: Path, tmp_path: Path, name: str
) -> None:
    path = damage(data_dir, name)
    out = tmp_path / "out"
    result = run("evaluate", model, data_dir, "-o", out, "--device", "cpu", code=3)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("failed: ")]
    assert line.startswith("failed: MSLUB patient19: ")
    assert path.name in line
    if name != "mismatch":  # said the other way round
        assert DAMAGES[name][2] in line
    table = pd.read_csv(out / "cases.csv")
    assert table[table["metric"] == "failed"]["case"].tolist() == ["patient19"]
    assert "IXI552" in set(table["case"])


def test_evaluate_where_every_scan_fails(model: Path, data_dir: Path, tmp_path: Path) -> None:
    for path in data_dir.rglob("t1/*.nii.gz"):
        truncate(path)
    run("evaluate", model, data_dir, "-o", tmp_path / "out", "--device", "cpu", code=1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nomodel", "DATA"), "nomodel: is neither a shipped model nor a folder"),
        ((".", "DATA"), "holds no trained model"),
        (("MODEL", "nowhere"), "nowhere: is no folder"),
        (("MODEL", "DATA", "--modality", "t2"), "was trained on t1 images, not on t2"),
    ],
)
def test_evaluate_with_wrong_input(
    model: Path, data_dir: Path, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    places = {"MODEL": str(model), "DATA": str(data_dir), ".": str(tmp_path)}
    result = run("evaluate", *(places.get(word, word) for word in words), "-o", tmp_path / "out", code=1)
    assert message in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("MODEL", "DATA", "--sets", "BraTS"), "'BraTS' is unknown. There are: IXI, MSLUB"),
        (("MODEL", "DATA", "--sets", "MSLUB,MSLAB"), "Did you mean 'MSLUB'?"),
        (("nomodel", "nowhere", "--scores", "l1,ssim_ensembel"), "Did you mean 'ssim_ensemble'?"),
        (("nomodel", "nowhere", "--device", "tpu"), "'tpu' is none of auto, cpu, cuda, mps"),
        (("nomodel", "nowhere", "--device", "cuda:x"), "'cuda:x' is none of"),
    ],
)
def test_evaluate_with_unknown_names(
    model: Path, data_dir: Path, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    places = {"MODEL": str(model), "DATA": str(data_dir)}
    result = run("evaluate", *(places.get(word, word) for word in words), "-o", tmp_path / "out", code=2)
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()


def test_evaluate_on_the_fold_of_the_model(model: Path, data_dir: Path, tmp_path: Path) -> None:
    splits = data_dir / "Data/splits"
    shutil.copyfile(splits / "IXI_train_fold0.csv", splits / "IXI_val_fold1.csv")
    shutil.copyfile(splits / "IXI_val_fold0.csv", splits / "IXI_train_fold1.csv")
    detector = Detector.load(model / "fold0/model")
    detector.provenance["fold"] = 1
    detector.save(tmp_path / "model")
    words = ("evaluate", tmp_path / "model", data_dir, "-o", tmp_path / "out", "--device", "cpu")
    result = run(*words, "--fold", 0, code=1)
    assert "was trained on fold 1, not on fold 0" in result.stderr
    run(*words, "--sets", "IXI")
    table = pd.read_csv(tmp_path / "out/cases.csv")
    assert set(table[table["split"] == "val"]["case"]) == {"IXI219", "IXI002"}
    for path in splits.glob("IXI_*_fold*.csv"):
        path.unlink()
    run(*words, "--sets", "IXI", "--fold", 0)


def raw_manifest(folder: Path, names: list[str]) -> Path:
    """A manifest of raw scans: each damage by its name, and "sound"."""
    rows = ["subject,image,mask,dataset,split"]
    for name in names:
        paths = {kind: folder / f"{name}_{kind}.nii.gz" for kind in ("image", "mask")}
        for kind, path in paths.items():
            shutil.copyfile(FILES / f"ixi013_{'t1' if kind == 'image' else kind}_4mm.nii.gz", path)
        if name in DAMAGES:
            DAMAGES[name][1](paths[DAMAGES[name][0]])
        rows.append(f"{name},{paths['image'].name},{paths['mask'].name},clinic,test")
    path = folder / "scans.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def test_prepare_dry_run_writes_nothing(tmp_path: Path) -> None:
    manifest = raw_manifest(tmp_path, ["sound", "missing"])
    words = ("prepare", manifest, "-o", tmp_path / "out", "--dataset", "manifest", "--dry-run")
    lines = run(*words).stdout.splitlines()
    assert lines[0].split("\t") == ["subject", "dataset", "split", "image", "mask", "lesion"]
    assert lines[1].split("\t")[:4] == ["sound", "clinic", "test", str(tmp_path / "sound_image.nii.gz")]
    assert [row["subject"] for row in json.loads(run(*words, "--json").stdout)] == ["sound", "missing"]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_prepare_goes_on_after_damaged_scans(tmp_path: Path) -> None:
    names = ["sound", *DAMAGES]
    manifest = raw_manifest(tmp_path, names)
    words = ("prepare", manifest, "-o", tmp_path / "out", "--dataset", "manifest", "--spacing", 2)
    result = run(*words, "--json", code=3)
    rows = {row["subject"]: row for row in json.loads(result.stdout)}
    assert set(rows) == set(names)
    assert rows.pop("sound")["status"] == "prepared"
    for name, row in rows.items():
        assert row["status"] == "failed", name
        assert f"{name}_" in row["message"]
        assert f"failed: {name}: " in result.stderr
    assert (tmp_path / "out/Data/Test/clinic/t1/sound_t1.nii.gz").is_file()
    for name in DAMAGES:
        (tmp_path / f"{name}_image.nii.gz").unlink() if name not in ("missing", "folder") else None
    shown = run(*words, code=3).stdout
    assert shown.startswith(f"0 prepared, 1 skipped, {len(DAMAGES)} failed\n")
    (tmp_path / "sound_image.nii.gz").unlink()
    run(*words, code=1)


def test_train_passes_everything_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(brainuad.experiment, "main", lambda words: seen.append(list(words)) or 3)
    words = ["experiment=lite", "-m", "seed=1,2", "--resume", "--allow-leaks", "--cfg", "job", "+a=b"]
    run("train", *words, code=3)
    assert seen == [words]


def test_train_without_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DATA_DIR", raising=False)
    assert "DATA_DIR" in run("train", "experiment=smoke", code=1).stderr
    result = run("train", "experiment=smoke", "data_dir=nowhere", "log_dir=logs", code=1)
    assert "nowhere" in result.stderr


def test_demo_says_what_it_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pd.DataFrame({"MS: best dice": [0.25]}, index=pd.Index(["l1"], name="score"))
    groups = pd.DataFrame(
        {"n": [6, 2], "chance": [np.nan, 0.01]}, index=pd.Index(["healthy", "MS"], name="set")
    )
    pictures = [tmp_path / "a.png", tmp_path / "b.png"]

    def fake(output: Path, *, device: str, report: Callable[[str, int, int], None]) -> brainuad.demo.Demo:
        assert (output, device) == (Path("demo"), "auto")
        report("scoring", 1, 2)
        return brainuad.demo.Demo(pd.DataFrame(), table, groups, tmp_path / "results.csv", pictures)

    monkeypatch.setattr(brainuad.demo, "run_demo", fake)
    shown = run("demo").stdout
    assert "0.2500" in shown
    assert f"Open {pictures[1]}" in shown
    found = json.loads(run("demo", "--json").stdout)
    assert found["scores"] == [{"score": "l1", "MS: best dice": 0.25}]
    assert found["groups"][0] == {"set": "healthy", "n": 6, "chance": None}
    assert found["pictures"] == [str(path) for path in pictures]


def test_output_that_cannot_be_written(model: Path, data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run("evaluate", model, data_dir, "-o", tmp_path / "file/out", "--device", "cpu", code=1)
    assert "cannot be written" in result.stderr


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "/out/x"),
            1,
            "error: /out/x: No space left on device",
        ),
        (InputError("a.nii", "is broken", "Mend it"), 1, "error: a.nii: is broken. Mend it"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_become_one_line(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, line: str
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(brainuad.data.check, "check_data_dir", fail)
    result = run("check", "DATA", code=code)
    assert (result.stdout, result.stderr) == ("", f"brainuad: {line}\n")
    if code == 1:
        assert CliRunner().invoke(app, ["--debug", "check", "DATA"]).exception is error


def test_a_bug_is_reported_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    console.report_bug(ValueError, ValueError("expected 3 axes\nmore"), None)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "brainuad: internal error: ValueError: expected 3 axes"
    assert "--debug" in second
