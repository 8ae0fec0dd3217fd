from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from presets import SMALL, Evaluated, compose_presets, saved_model

from brainuad import console
from brainuad.config import ExperimentConfig
from brainuad.detector import Detector
from brainuad.errors import InputError
from brainuad.experiment import run as experiment

ROOT = Path(__file__).parents[2]
VERBATIM = {mode: ["experiment=DDPM/DDPM", f"datamodule.cfg.mode={mode}"] for mode in ("t1", "t2")}


def only(paths: Any) -> Path:
    (path,) = paths
    return path


@pytest.mark.parametrize("mode", ["t1", "t2"])
def test_commands_of_the_paper(mode: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert experiment.main([*VERBATIM[mode], *SMALL]) == 0
    run = only((here / "LOGS" / "DDPM" / mode / "seed3141").iterdir())
    assert capsys.readouterr().out.split() == [str(run)]
    assert OmegaConf.load(run / ".hydra" / "config.yaml").datamodule.cfg.mode == mode
    assert (run / "fold0" / "training.json").is_file()
    assert (run / "fold0" / "model" / "model.safetensors").is_file()
    table = pd.read_csv(run / "fold0" / "evaluation" / "cases.csv")
    assert set(zip(table["set"], table["split"], strict=True)) == {
        ("IXI", "val"),
        ("IXI", "test"),
        ("MSLUB", "val"),
        ("MSLUB", "test"),
    }
    assert not (table["metric"] == "failed").any()
    assert Path.cwd() == here


@pytest.mark.parametrize(("quiet", "shown"), [(False, True), (True, False)])
def test_messages_are_shown_unless_quiet(
    quiet: bool, shown: bool, leaking: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, package = logging.getLogger(), logging.getLogger("brainuad")
    handlers, level = root.handlers[:], package.level
    monkeypatch.setattr(experiment, "train_fold", lambda *args, **options: None)
    try:
        console.set_verbosity(False, quiet)  # as the command line does
        assert experiment.main(["experiment=smoke", *SMALL]) == 0
    finally:
        root.handlers[:] = handlers
        package.setLevel(level)
    assert ("left out 2 of 7 rows" in capsys.readouterr().err) == shown


def test_cases_that_fail_are_counted(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    only((here / "DATA" / "Data" / "Test" / "MSLUB" / "t1").glob("patient19*")).write_bytes(b"no scan")
    assert experiment.main(["experiment=smoke", *SMALL]) == 3
    assert "1 cases failed; see evaluation/cases.csv" in capsys.readouterr().err


def test_run_py_reads_the_file_beside_it(here: Path, tmp_path: Path) -> None:
    shutil.copy(ROOT / "run.py", here)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    # --cfg job prints what would be run, so that no training is needed here
    done = subprocess.run(
        [sys.executable, str(here / "run.py"), *VERBATIM["t2"], "--cfg", "job"],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    settings = OmegaConf.create(done.stdout)
    assert settings.datamodule.cfg.mode == "t2"
    assert settings.model.cfg.unet_dim == 128
    assert settings.datamodule.cfg.imageDim == [192, 192, 100]
    assert settings.trainer.max_epochs == 1600
    assert settings.data_dir == str(here / "DATA")


def test_multirun_gives_every_job_a_folder(here: Path, evaluated: Evaluated) -> None:
    assert experiment.main(["-m", "experiment=smoke", *SMALL, "seed=1,2"]) == 0
    folders = [only((here / "LOGS" / "smoke" / "t1" / f"seed{seed}").iterdir()) for seed in (1, 2)]
    assert [model for model, _, _ in evaluated] == [folder / "fold0" / "model" for folder in folders]
    assert [folder.name[-5:] for folder in folders] == ["_job0", "_job1"]


def test_a_failing_job_does_not_stop_a_multirun(here: Path, evaluated: Evaluated) -> None:
    assert experiment.main(["-m", "experiment=smoke", *SMALL, "datamodule.cfg.mode=t3,t1"]) == 1
    assert len(evaluated) == 1


def test_new_run_every_time_and_resume_of_the_newest(
    here: Path, evaluated: Evaluated, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["experiment=smoke", *SMALL]
    stamps = [f"hydra.run.dir=LOGS/smoke/t1/seed3141/2024-01-0{day}_00-00-00" for day in (1, 2)]
    for stamp in stamps:
        assert experiment.main([*small, stamp]) == 0
    runs = sorted((here / "LOGS" / "smoke" / "t1" / "seed3141").iterdir())
    finished = [(run / "fold0" / "training.json").stat().st_mtime_ns for run in runs]
    capsys.readouterr()

    assert experiment.main([*small, "--resume"]) == 0  # complete: nothing is trained
    assert capsys.readouterr().out.split() == [str(runs[1])]
    assert [(run / "fold0" / "training.json").stat().st_mtime_ns for run in runs] == finished

    assert experiment.main([*small, "resume=True", "trainer.max_epochs=3"]) == 0
    assert '"steps": 3' in (runs[1] / "fold0" / "training.json").read_text()
    assert '"steps": 2' in (runs[0] / "fold0" / "training.json").read_text()

    assert experiment.main([*small, "resume=True", "datamodule.cfg.lr=0.5"]) == 1
    assert "datamodule.cfg.lr=0.0001 there, 0.5 here" in capsys.readouterr().err

    assert experiment.main([*small, stamps[0]]) == 1  # never overwritten
    assert "exists. Add resume=True" in capsys.readouterr().err


def test_evaluation_of_a_trained_model(here: Path, evaluated: Evaluated, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["experiment=smoke", *SMALL]
    assert experiment.main(small) == 0
    run = Path(capsys.readouterr().out.strip())
    for folder in (run, run / "fold0", run / "fold0" / "model"):
        target = f"hydra.run.dir=LOGS/{len(evaluated)}"
        assert experiment.main([*small, "onlyEval=True", f"load_checkpoint={folder}", target]) == 0
        assert evaluated[-1][0] == run / "fold0" / "model"
    assert experiment.main([*small, "onlyEval=True", f"load_checkpoint={here}"]) == 1
    assert "holds no trained model" in capsys.readouterr().err


def test_evaluation_of_a_checkpoint_of_the_release(here: Path, evaluated: Evaluated) -> None:
    with np.load(Path(__file__).parents[1] / "reference" / "unet_small.npz") as arrays:
        names = [name for name in arrays if name.startswith("state_dict/")]
        weights = {name.removeprefix("state_dict/"): torch.from_numpy(arrays[name]) for name in names}
    torch.save({"state_dict": weights}, here / "last.ckpt")
    words = ["experiment=smoke", "onlyEval=True", f"load_checkpoint={here / 'last.ckpt'}", "hydra.run.dir=LOGS/1"]
    for _ in range(2):  # again, it is there
        assert experiment.main(words) == 0
        assert evaluated[-1][0].parent == here / "LOGS" / "1"
        assert Detector.load(evaluated[-1][0]).provenance["imported_from"] == "last.ckpt"


def test_a_model_of_the_other_modality_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved_model(here / "model")
    words = ["experiment=smoke", "onlyEval=True", f"load_checkpoint={folder}", "datamodule.cfg.mode=t2"]
    assert experiment.main(words) == 1
    assert "was trained on t1, and datamodule.cfg.mode is t2" in capsys.readouterr().err


def test_evaluation_is_by_the_settings_of_the_model(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []

    def record(config: ExperimentConfig, *args: Any) -> int:
        seen.append(config.model.cfg)
        return 0

    monkeypatch.setattr(experiment, "evaluate_fold", record)
    folder = saved_model(here / "model")
    words = ["experiment=smoke", "onlyEval=True", f"load_checkpoint={folder}"]
    assert experiment.main([*words, "model.cfg.noise_draws=3"]) == 0, capsys.readouterr().err
    assert (seen[0].test_timesteps, seen[0].noise_draws) == (321, 3)
    assert experiment.main([*words, "model.cfg.unet_dim=64"]) == 1
    assert "model.cfg.unet_dim=32 there, 64 here" in capsys.readouterr().err


@pytest.mark.parametrize("devices", ["2", "[0,1]", "'0,1'", "auto", "-1"])
def test_folds_on_several_devices_are_refused(devices: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    config = compose_presets("experiment=smoke", f"trainer.devices={devices}", "num_folds=2")
    with pytest.raises(InputError, match=r"trainer\.devices: 2 folds .* fold=0"):
        experiment.run(config, Path("unused"))
    experiment.check_devices(config, 1)


@pytest.mark.parametrize("devices", ["1", "[1]", "'0,'", "nonsense"])
def test_folds_on_one_device(devices: str) -> None:
    experiment.check_devices(compose_presets("experiment=smoke", f"trainer.devices={devices}"), 5)


@pytest.mark.parametrize(
    ("words", "folds"),
    [
        ([], [0]),
        (["experiment=DDPM/DDPM"], [0]),
        (["num_folds=5"], [0, 1, 2, 3, 4]),
        (["start_fold=2", "num_folds=4"], [2, 3]),
        (["fold=3"], [3]),
        (["fold=0", "num_folds=5"], [0]),
    ],
)
def test_folds_are_those_of_the_release_or_the_one_that_is_named(words: list[str], folds: list[int]) -> None:
    assert list(compose_presets(*words).folds()) == folds


@pytest.mark.parametrize(
    ("name", "idle"),
    [
        ("trainer.max_epochs", True),
        ("logger", True),
        ("datamodule.cfg.lr", True),
        ("initial_weights", True),
        ("trainer.precision", False),
        ("datamodule.cfg.num_workers", False),
        ("model.cfg.test_timesteps", False),
        ("seed", False),
    ],
)
def test_settings_of_training_alone(name: str, idle: bool) -> None:
    assert experiment._trains_only(name) == idle


def test_no_fold_is_an_error_that_says_how_to_name_one(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert experiment.main(["experiment=smoke", "num_folds=1", "start_fold=3"]) == 1
    assert "num_folds: is 1, before which the folds end, and start_fold is 3. Give fold=3" in capsys.readouterr().err


def test_interrupt_is_130(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "run", interrupted)
    assert experiment.main(["experiment=smoke"]) == 130


def test_missing_folds_are_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert experiment.main(["experiment=smoke", "num_folds=2"]) == 1
    assert "Folds present: 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("max_time", "resume", "complete", "longer"),
    [
        ("00:10:00", True, [True, True], True),
        ("00:10:00", True, [True, False], False),  # first those that are not
        ("00:10:00", False, [True, True], False),
        ("", True, [True, True], False),
    ],
)
def test_complete_trainings_by_the_clock_go_on_when_no_other_is_left(
    max_time: str, resume: bool, complete: list[bool], longer: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ExperimentConfig(resume=resume)
    config.trainer.max_time = max_time
    folders = [tmp_path / f"fold{fold}" for fold in range(2)]
    state = dict(zip(folders, complete, strict=True))
    monkeypatch.setattr("brainuad.train.is_complete", lambda config, folder: state[folder])
    assert experiment.trains_longer(config, folders) == longer


def test_a_time_that_is_none_is_refused_before_anything_is_read(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert experiment.main(["experiment=smoke", *SMALL, "trainer.max_time=8m"]) == 1
    assert "trainer.max_time: '8m' is no time. Write HH:MM:SS, such as 00:08:30" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_one_clear_error(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "file").touch()
    assert experiment.main(["experiment=smoke", *SMALL, "log_dir=file"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"brainuad: error: {here / 'file'}")
    assert "HYDRA_FULL_ERROR" not in os.environ
