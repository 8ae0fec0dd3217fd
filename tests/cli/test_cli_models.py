"""``brainuad models``: what is shipped, where it is, and whether it is what was written."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny import tiny_detector
from typer.testing import CliRunner

from brainuad.cli import app
from brainuad.detector import Detector, load_model
from brainuad.modelfile import known_models


def call(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["models", *map(str, words)])
    assert not isinstance(result.exception, Exception), result.exception
    return result.exit_code, result.stdout


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tiny_detector().save(tmp_path / "model")
    return tmp_path / "model"


def test_list() -> None:
    code, printed = call("list", "--json")
    assert code == 0
    rows = {row["name"]: row for row in json.loads(printed)}
    assert list(rows) == known_models()
    lite = rows["lite-t1"]
    assert lite["modality"] == "t1"
    about = "Diffusion model and denoising autoencoder of healthy axial T1 slices, for machines without a GPU."
    assert lite["for"] == about
    assert lite["parameters"] == sum(w.numel() for w in load_model("lite-t1", "cpu").model.parameters())
    assert 8 < lite["megabytes"] < 14
    assert "IXI" in lite["trained_on"]
    assert "CC BY-SA" in lite["licence"]
    assert lite["calibrated_on"] >= 15
    assert 5 < lite["seconds_a_scan"] < 40
    assert call("list")[1].splitlines()[1].startswith("lite-flair\tflair\t")


def test_path() -> None:
    code, printed = call("path", "lite-t1")
    assert code == 0
    assert (Path(printed.strip()) / "model.safetensors").is_file()
    result = CliRunner().invoke(app, ["models", "path", "lite-t9"])
    assert result.exit_code == 1
    assert "Shipped models: lite-flair, lite-t1, lite-t2" in result.stderr


def test_shipped_models_are_what_was_written() -> None:
    code, printed = call("verify", "--json")
    rows = json.loads(printed)
    assert [row["name"] for row in rows] == known_models()
    assert {(row["status"], row["weights"]) for row in rows} == {("ok", "as recorded")}
    assert code == 0


def test_saving_records_the_hash_of_the_weights(model: Path, tmp_path: Path) -> None:
    recorded = yaml.safe_load((model / "config.yaml").read_text())["weights_sha256"]
    assert recorded == hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
    Detector.load(model).save(tmp_path / "half", bits=16)
    again = yaml.safe_load((tmp_path / "half" / "config.yaml").read_text())["weights_sha256"]
    assert again == hashlib.sha256((tmp_path / "half" / "model.safetensors").read_bytes()).hexdigest()
    assert again != recorded


def test_other_weights_are_noticed(model: Path) -> None:
    assert call("verify", model)[0] == 0
    weights = load_file(model / "model.safetensors")
    name = next(iter(weights))
    weights[name] = weights[name] + 1
    save_file(weights, model / "model.safetensors")
    code, printed = call("verify", model, "--json")
    (row,) = json.loads(printed)
    assert code == 1
    assert (row["status"], row["weights"]) == ("failed", "changed")
    assert "recorded is" in row["message"]


def test_without_a_recorded_hash(model: Path) -> None:
    settings = yaml.safe_load((model / "config.yaml").read_text())
    del settings["weights_sha256"]
    (model / "config.yaml").write_text(yaml.safe_dump(settings))
    code, printed = call("verify", model, "--json")
    (row,) = json.loads(printed)
    assert code == 0
    assert (row["status"], row["weights"]) == ("ok", "no SHA-256 was recorded")


def test_a_model_that_cannot_compute(tmp_path: Path) -> None:
    detector = tiny_detector()
    with torch.no_grad():
        next(detector.model.parameters()).fill_(3e38)
    detector.save(tmp_path / "model")
    code, printed = call("verify", tmp_path / "model")
    assert code == 1
    assert "NaN or infinite" in printed


@pytest.mark.parametrize("lost", ["config.yaml", "model.safetensors", ""])
def test_a_model_that_is_not_whole(model: Path, lost: str) -> None:
    shutil.rmtree(model) if not lost else (model / lost).unlink()
    code, printed = call("verify", model, "--json")
    (row,) = json.loads(printed)
    assert code == 1
    assert row["status"] == "failed"
    assert (lost or str(model)) in row["message"]
