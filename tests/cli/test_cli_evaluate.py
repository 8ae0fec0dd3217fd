"""``brainuad evaluate`` as a user types it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from commands import DAMAGES, damage, run, truncate

from brainuad.data.volume import Volume
from brainuad.detector import Detector


def test_evaluate(model: Path, data_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("evaluate", model, data_dir, "-o", out, "--device", "cpu", "--scores", "l1", "--scores", "ssim_ensemble")
    shown = run(*words).stdout
    scores = ["random", "intensity_bright", "intensity_dark", "l1", "ssim_ensemble"]
    assert [line.split()[:2] for line in shown.splitlines()[:11]] == [
        ["set", "score"], *(["IXI", score] for score in scores), *(["MSLUB", score] for score in scores),
    ]  # fmt: skip
    assert str(out / "cases.csv") in shown
    assert "precision_recall" in (out / "summary.html").read_text(encoding="utf-8")
    summary = json.loads(run(*words, "--json").stdout)
    assert "intensity_atlas needs 3 healthy validation scans" in summary["notes"][0]
    table = pd.read_csv(out / "cases.csv").set_index(["case", "score", "space", "metric", "threshold"])
    dice = table["value"].xs(("patient19", "l1", "model", "best_dice")).item()
    figures = summary["figures"]["MSLUB"]["test"]["l1"]["model"]["any"]["best_dice"]
    assert figures["mean"] == pytest.approx(dice)
    assert f"{dice:.3f}" in shown.splitlines()[9]


def test_evaluate_leaves_out_leaks(model: Path, data_dir: Path, tmp_path: Path) -> None:
    splits = data_dir / "Data/splits"
    shutil.copyfile(splits / "MSLUB_test.csv", splits / "MSLUB_val.csv")
    words = ("--sets", "MSLUB", "--device", "cpu", "--scores", "ssim_1.42,l1")
    result = run("evaluate", model, data_dir, "-o", tmp_path / "out", *words)
    assert "left out 1 rows" in result.stderr
    assert "ssim_1.42" in result.stdout, "any width may be named"
    table = pd.read_csv(tmp_path / "out/cases.csv")
    assert set(zip(table["case"], table["split"], strict=True)) == {("patient19", "test")}


def test_maps_are_written_beside_figures_that_were_there(model: Path, data_dir: Path, tmp_path: Path) -> None:
    words = ("--sets", "MSLUB", "--device", "cpu", "--scores", "ssim_1.42,l1", "--no-native")
    run("evaluate", model, data_dir, "-o", tmp_path / "out", *words)
    figures = (tmp_path / "out/cases.csv").read_text()
    assert not (tmp_path / "out/maps").exists()
    run("evaluate", model, data_dir, "-o", tmp_path / "out", *words, "--maps")
    assert (tmp_path / "out/cases.csv").read_text() == figures
    maps = sorted((tmp_path / "out/maps").rglob("*.nii.gz"))
    assert {path.parent.name for path in maps} == {"MSLUB", "IXI"}
    shown = {path.name: Volume.load(path) for path in maps if path.name.startswith("patient19")}
    assert {name.rsplit("_", 1)[0] for name in shown} == {"patient19_l1", "patient19_ssim_1.42"}
    scan = Volume.load(next((data_dir / "Data/Test/MSLUB/t1").glob("patient19*")))
    for map in shown.values():
        middles = [volume.affine @ [*np.argwhere(volume.array > 0).mean(0), 1] for volume in (map, scan)]
        assert np.abs(middles[0] - middles[1]).max() < 12, "the map lies on the brain"
    before = maps[0].stat().st_mtime_ns
    run("evaluate", model, data_dir, "-o", tmp_path / "out", *words, "--maps")
    assert maps[0].stat().st_mtime_ns == before


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
def test_evaluate_goes_on_after_a_damaged_scan(model: Path, data_dir: Path, tmp_path: Path, name: str) -> None:
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
        (("nomodel", "nowhere", "--scores", "second_ssim_x"), "'second_ssim_x' is unknown"),
        (("nomodel", "nowhere", "--scores", "ssim_1_1"), "Did you mean 'ssim_1.1'?"),
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


def test_evaluate_compiles_if_asked(
    model: Path, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function: function)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **how: compiled.append(module))
    words = ("evaluate", model, data_dir, "-o", tmp_path / "out", "--sets", "BraTS")
    run(*words, code=2)
    assert not compiled
    run(*words, "--compile", code=2)
    assert len(compiled) == 1


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


def test_output_that_cannot_be_written(model: Path, data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run("evaluate", model, data_dir, "-o", tmp_path / "file/out", "--device", "cpu", code=1)
    assert "cannot be written" in result.stderr
