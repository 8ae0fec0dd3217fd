from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from paper_layout import build_tree, split_row

from brainuad import console, experiment
from brainuad.config import DataConfig, ExperimentConfig, ModelConfig
from brainuad.data.cohort import Case, paper_cases
from brainuad.data.tables import write_split
from brainuad.errors import InputError
from brainuad.modelfile import write_model
from brainuad.models import DiffusionModel
from brainuad.overrides import (
    UnknownName,
    check_overrides,
    check_settings,
    path_overrides,
    read_environment,
    split_arguments,
    to_experiment,
)
from brainuad.runs import with_saved_settings

ROOT = Path(__file__).parents[1]
# as small as the tests' scans, two steps
SMALL = [
    "num_folds=1",
    "trainer.max_epochs=2",
    "trainer.accelerator=cpu",
    "model.cfg.unet_dim=32",
    "model.cfg.dim_mults=[1,1]",
    "model.cfg.num_res_blocks=1",
    "datamodule.cfg.imageDim=[40,48,32]",
    "datamodule.cfg.sample_set=True",
    "logger=none",
    "callbacks.picture_every_n_epochs=0",
]
VERBATIM = {mode: ["experiment=DDPM/DDPM", f"datamodule.cfg.mode={mode}"] for mode in ("t1", "t2")}

Evaluated = list[tuple[Path, list[Case], Path]]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the paper's data, ``pc_environment.env`` and a cache of its own, as working folder."""
    build_tree(tmp_path / "DATA", modalities=("t1", "t2"))
    (tmp_path / "pc_environment.env").write_text("# where things are\nDATA_DIR='DATA'\nLOG_DIR=LOGS\n")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("DATA_DIR", raising=False)
    monkeypatch.delenv("LOG_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> Evaluated:
    """What would have been evaluated."""
    calls: Evaluated = []

    def record(config: ExperimentConfig, model: Path, cases: list[Case], folder: Path) -> int:
        calls.append((model, cases, folder))
        return 0

    monkeypatch.setattr(experiment, "evaluate_fold", record)
    return calls


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
    quiet: bool,
    shown: bool,
    leaking: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, package = logging.getLogger(), logging.getLogger("brainuad")
    handlers, level = root.handlers[:], package.level
    monkeypatch.setattr(experiment, "train_fold", lambda *args: None)
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


def test_evaluation_of_a_trained_model(
    here: Path, evaluated: Evaluated, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["experiment=smoke", *SMALL]
    assert experiment.main(small) == 0
    run = Path(capsys.readouterr().out.strip())
    for folder in (run, run / "fold0", run / "fold0" / "model"):
        target = f"hydra.run.dir=LOGS/{len(evaluated)}"
        assert experiment.main([*small, "onlyEval=True", f"load_checkpoint={folder}", target]) == 0
        assert evaluated[-1][0] == run / "fold0" / "model"
    assert experiment.main([*small, "onlyEval=True", f"load_checkpoint={here}"]) == 1
    assert "holds no trained model" in capsys.readouterr().err


def saved_model(folder: Path, **settings: Any) -> Path:
    """A model of T1 scans, untrained, with settings that no preset has."""
    values = {"unet_dim": 32, "dim_mults": (1, 1), "num_res_blocks": 1, "attention_head_dim": 32}
    model = ModelConfig(**values, test_timesteps=321, noise_draws=2, **settings)
    write_model(folder, DiffusionModel(model), model, DataConfig(imageDim=(40, 48, 32)))
    return folder


def test_a_model_keeps_its_settings_but_for_those_typed(tmp_path: Path) -> None:
    folder = saved_model(tmp_path / "model")
    config = compose_presets("experiment=DDPM/DDPM", "model.cfg.sigma_ens=[1]")
    typed = ["experiment", "model.cfg.sigma_ens"]
    settings = with_saved_settings(config, folder, typed).model.cfg
    assert (settings.test_timesteps, settings.noise_draws, settings.sigma_ens) == (321, 2, (1.0,))
    assert config.model.cfg.test_timesteps == 500


@pytest.mark.parametrize(
    "word",
    [
        "model.cfg.unet_dim=64",
        "model.cfg.dim_mults=[1,2]",
        "model.cfg.num_res_blocks=2",
        "model.cfg.noisetype=gaussian",
        "datamodule.cfg.imageDim=[8,8,8]",
        "datamodule.cfg.rescaleFactor=1",
        "model=lite",
    ],
)
def test_a_model_is_not_what_the_user_says(word: str, tmp_path: Path) -> None:
    folder = saved_model(tmp_path / "model")
    config = compose_presets("experiment=smoke", word)
    name = word.split("=")[0]
    with pytest.raises(InputError, match=f"{name}.* there, .* here"):
        with_saved_settings(config, folder, ["experiment", name])


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


def test_reference_shares_noise_in_training() -> None:
    assert compose_presets("experiment=smoke", "reference=True").model.cfg.shared_noise
    assert not compose_presets("experiment=smoke").model.cfg.shared_noise


@pytest.mark.parametrize("devices", ["2", "[0,1]", "'0,1'", "auto", "-1"])
def test_folds_on_several_devices_are_refused(devices: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    config = compose_presets("experiment=smoke", f"trainer.devices={devices}", "num_folds=2")
    with pytest.raises(InputError, match=r"trainer\.devices: 2 folds .* num_folds=1 start_fold=0"):
        experiment.run(config, Path("unused"))
    experiment.check_devices(config, 1)


@pytest.mark.parametrize("devices", ["1", "[1]", "'0,'", "nonsense"])
def test_folds_on_one_device(devices: str) -> None:
    experiment.check_devices(compose_presets("experiment=smoke", f"trainer.devices={devices}"), 5)


def test_interrupt_is_130(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "run", interrupted)
    assert experiment.main(["experiment=smoke"]) == 130


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trainer.max_epoch=2"], "trainer.max_epoch: no such setting. Did you mean 'trainer.max_epochs'?"),
        (["lr=3"], "Did you mean 'datamodule.cfg.lr'?"),
        (["batch_size=3"], "Did you mean 'datamodule.cfg.batch_size'?"),
        (["model.cfg.unetdim=3"], "Did you mean 'model.cfg.unet_dim'?"),
        (["mdoel=lite"], "Did you mean 'model'?"),
        (
            ["experiment=DDPM/DPM"],
            "experiment=DDPM/DPM: no such preset of experiment. Did you mean 'DDPM/DDPM'?",
        ),
        (["experiment=ddpm"], "Did you mean 'DDPM/DDPM'?"),
        (["model=lit"], "Did you mean 'lite'?"),
        (["-m", "model=lite,lit"], "Did you mean 'lite'?"),
    ],
)
def test_unknown_names(
    words: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert experiment.main(words) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not (here / "LOGS").exists()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("seed=abc", "Value 'abc' of type 'str' could not be converted to Integer"),
        ("seed=1,2", "add --multirun"),
        ("nonsense", "Write NAME=VALUE"),
        ("datamodule.cfg.mode=t3", "'t3' is unknown. Choose one of t1, t2"),
        ("model.cfg.noisetype=foo", "Known: simplex, gaussian"),
        ("model.cfg.name=ddp", "Did you mean 'ddpm'?"),
        ("model.cfg.test_timesteps=1001", "not within 1..1000"),
        ("trainer.precision=8", "'8' is unknown"),
        ("datamodule.cfg.batch_size=0", "datamodule.cfg.batch_size: 0 is too small"),
        ("datamodule.cfg.imageDim=[1,2]", "datamodule.cfg.imageDim"),
        ("trainer.ema_decay=1", "trainer.ema_decay"),
        ("onlyEval=True", "load_checkpoint: is empty"),
    ],
)
def test_bad_values(word: str, message: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert experiment.main([word]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_missing_folds_are_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert experiment.main(["experiment=smoke", "num_folds=2"]) == 1
    assert "Folds present: 0" in capsys.readouterr().err


def compose_presets(*overrides: str) -> ExperimentConfig:
    with initialize_config_module("brainuad.conf", version_base="1.3"):
        return to_experiment(compose("config", overrides=[*overrides, "data_dir=d", "log_dir=l"]))


def test_paper_preset_has_the_published_values() -> None:
    config = compose_presets("experiment=DDPM/DDPM")
    assert (config.seed, config.num_folds, config.trainer.max_epochs) == (3141, 5, 1600)
    data, model = config.datamodule.cfg, config.model.cfg
    assert (data.batch_size, data.lr, data.imageDim, data.rescaleFactor) == (32, 1e-4, (192, 192, 100), 2.0)
    assert (data.smoothing_iterations, data.affine, data.aug_intensity) == (3, "ignored", True)
    assert (model.unet_dim, model.dim_mults, model.num_res_blocks, model.unshuffle) == (128, (1, 2, 2), 3, 1)
    assert (model.timesteps, model.test_timesteps, model.noisetype, model.loss) == (
        1000,
        500,
        "simplex",
        "l1",
    )
    assert len(model.sigma_ens) == 8


def test_paper_is_another_name_of_the_preset() -> None:
    assert compose_presets("experiment=paper") == compose_presets("experiment=DDPM/DDPM")


@pytest.mark.parametrize("word", ["16", "bf16", "16-mixed", "bf16-mixed", "32", "auto"])
def test_precisions_as_lightning_spells_them(word: str) -> None:
    check_settings(compose_presets("experiment=smoke", f"trainer.precision={word}"))


@pytest.mark.parametrize("preset", ["DDPM/DDPM", "DDPM/reference", "paper", "lite", "smoke"])
def test_presets_are_valid(preset: str) -> None:
    check_settings(compose_presets(f"experiment={preset}"))


def test_groups_go_before_the_experiment() -> None:
    config = compose_presets("experiment=lite", "model=ddpm", "logger=wandb", "trainer=smoke")
    assert config.model.cfg.unet_dim == 128
    assert config.datamodule.cfg.affine == "used"
    assert config.logger.wandb
    assert config.trainer.max_epochs == 2


def test_flags() -> None:
    flags, overrides = split_arguments(["-m", "--resume", "seed=1", "--cfg", "job", "--allow-leaks"])
    assert flags == ["-m", "--cfg", "job"]
    assert overrides == ["resume=True", "seed=1", "allow_leaks=True"]


def test_check_overrides_leaves_sweeps_and_hydra_alone() -> None:
    check_overrides(["seed=1,2", "model=lite,smoke", "hydra.verbose=true"], multirun=True)
    check_overrides(["model=mine"], multirun=False, own_files=True)
    with pytest.raises(UnknownName):
        check_overrides(["modle=mine"], multirun=False, own_files=True)


def test_environment_file(tmp_path: Path) -> None:
    path = tmp_path / "pc_environment.env"
    path.write_text(
        "\ufeff# a comment\n\nDATA_DIR = /data/mine # where\n"
        "export LOG_DIR=\"/logs # 1\"\r\nOTHER='x y'\nEMPTY=\n",
        encoding="utf-8",
    )
    assert read_environment(path) == {
        "DATA_DIR": "/data/mine",
        "LOG_DIR": "/logs # 1",
        "OTHER": "x y",
        "EMPTY": "",
    }
    path.write_text("DATA_DIR /data\n")
    with pytest.raises(InputError, match=r"pc_environment\.env:1: .*is not KEY=value"):
        read_environment(path)


def test_override_then_file_then_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pc_environment.env"
    monkeypatch.setenv("DATA_DIR", "/from/environment")
    monkeypatch.delenv("LOG_DIR", raising=False)
    assert path_overrides([], path) == ["data_dir='/from/environment'", "log_dir='logs'"]
    path.write_text('DATA_DIR="/it\'s"\nLOG_DIR=relative\n')
    assert path_overrides([], path) == [r"data_dir='/it\'s'", f"log_dir='{tmp_path / 'relative'}'"]
    assert path_overrides(["data_dir=/here", "log_dir=/there"], path) == []
    monkeypatch.delenv("DATA_DIR")
    with pytest.raises(InputError, match="DATA_DIR: is not set"):
        path_overrides([], tmp_path / "missing.env")


def fold_config(here: Path, **changes: Any) -> ExperimentConfig:
    config = ExperimentConfig(data_dir=str(here / "DATA"), **changes)
    config.datamodule.cfg.sample_set = True
    return config


@pytest.fixture
def leaking(here: Path) -> Path:
    """Data in which a test subject is also trained on."""
    ixi = "Train/ixi"
    names = ("IXI219-Guys-0899-T1", "IXI552-Guys-1113-T1", "IXI219-Guys-0899-T1")
    rows = [split_row(name, ixi, lesion=False) for name in names]
    write_split(here / "DATA" / "Data" / "splits" / "IXI_train_fold0.csv", rows)
    return here


def test_leaks_are_left_out_and_counted(leaking: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    cases = experiment.fold_cases(fold_config(leaking), 0)
    assert [case.subject for case in cases if case.split == "train"] == ["IXI219"]
    assert "left out 2 of 7 rows (1 subjects were in two splits, 1 images were listed twice)" in caplog.text


def test_leaks_are_refused_unless_allowed(leaking: Path) -> None:
    config = fold_config(leaking)
    config.datamodule.cfg.leak_free = False
    with pytest.raises(InputError, match=r"IXI IXI552 is in train and test.*--allow-leaks"):
        experiment.fold_cases(config, 0)
    config.allow_leaks = True
    assert len(experiment.fold_cases(config, 0)) == 7


def test_evaluation_leaves_out_what_training_leaves_out(leaking: Path) -> None:
    config = fold_config(leaking, onlyEval=True)
    subjects = [case.subject for case in experiment.fold_cases(config, 0) if case.split == "train"]
    assert subjects == ["IXI219"]
    config.datamodule.cfg.leak_free = False
    with pytest.raises(InputError, match="--allow-leaks"):
        experiment.fold_cases(config, 0)


def test_evaluation_takes_a_sample_where_asked(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = fold_config(here, onlyEval=True)
    monkeypatch.setattr(experiment, "SAMPLE_SUBJECTS", 0)
    assert experiment.fold_cases(config, 0) == []
    config.datamodule.cfg.sample_set = False
    assert experiment.fold_cases(config, 0)


def test_training_takes_healthy_scans_of_its_own_sets(here: Path) -> None:
    cases = paper_cases(here / "DATA", modality="t1", fold=0)
    assert {case.dataset for case in experiment.healthy(cases, "val")} == {"IXI"}
    lesions = [case for case in cases if case.label]
    assert experiment.healthy(lesions, "train") == experiment.healthy(lesions, "val") == []


def test_sample_set_keeps_a_few_of_every_split(here: Path) -> None:
    cases = paper_cases(here / "DATA", modality="t1", fold=0)
    kept = experiment.first_subjects(cases * 9)
    assert len(kept) == 4 * 5
    assert {(case.dataset, case.split) for case in kept} == {(case.dataset, case.split) for case in cases}
