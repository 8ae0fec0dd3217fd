"""Presets, overrides and the file of paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from presets import compose_presets

from brainuad.errors import InputError
from brainuad.experiment import run as experiment
from brainuad.experiment.environment import path_overrides, read_environment
from brainuad.experiment.overrides import UnknownName, check_names, read_overrides, split_arguments
from brainuad.experiment.settings import check_settings
from brainuad.registry import MODELS


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trainer.max_epoch=2"], "trainer.max_epoch: no such setting. Did you mean 'trainer.max_epochs'?"),
        (["lr=3"], "Did you mean 'datamodule.cfg.lr'?"),
        (["batch_size=3"], "Did you mean 'datamodule.cfg.batch_size'?"),
        (["model.cfg.unetdim=3"], "Did you mean 'model.cfg.unet_dim'?"),
        (["mdoel=lite"], "Did you mean 'model'?"),
        (["experiment=DDPM/DPM"], "experiment=DDPM/DPM: no such preset of experiment. Did you mean 'DDPM/DDPM'?"),
        (["experiment=ddpm"], "Did you mean 'DDPM/DDPM'?"),
        (["model=lit"], "Did you mean 'lite'?"),
        (["-m", "model=lite,lit"], "Did you mean 'lite'?"),
        (
            ["model.cfg.latent_dim=8"],
            "model.cfg.latent_dim: no setting of the model ddpm. It is one of ae, vae: add model=ae",
        ),
        (["model=ae", "model.cfg.divergence=1"], "no setting of the model ae. It is one of vae"),
    ],
)
def test_unknown_names(words: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_paper_preset_has_the_published_values() -> None:
    config = compose_presets("experiment=DDPM/DDPM")
    assert (config.seed, config.num_folds, config.trainer.max_epochs) == (3141, 1, 1600)
    data, model = config.datamodule.cfg, config.model.cfg
    assert (data.batch_size, data.lr, data.imageDim, data.rescaleFactor) == (32, 1e-4, (192, 192, 100), 2.0)
    assert (data.smoothing_iterations, data.affine, data.aug_intensity) == (3, "ignored", True)
    assert (model.unet_dim, model.dim_mults, model.num_res_blocks, model.unshuffle) == (128, (1, 2, 2), 3, 1)
    assert (model.timesteps, model.test_timesteps, model.noisetype, model.loss) == (1000, 500, "simplex", "l1")
    assert len(model.sigma_ens) == 8


def test_paper_is_another_name_of_the_preset() -> None:
    assert compose_presets("experiment=paper") == compose_presets("experiment=DDPM/DDPM")


@pytest.mark.parametrize("word", ["16", "bf16", "16-mixed", "bf16-mixed", "32", "auto"])
def test_precisions_as_lightning_spells_them(word: str) -> None:
    check_settings(compose_presets("experiment=smoke", f"trainer.precision={word}"))


PRESETS = ["DDPM/DDPM", "DDPM/reference", "paper", "lite", "smoke", "DAE/DAE", "VAE/VAE", "AE/AE", "atlas"]


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_valid(preset: str) -> None:
    check_settings(compose_presets(f"experiment={preset}"))


def test_settings_of_the_chosen_model() -> None:
    config = read_overrides(["model=vae", "model.cfg.latent_dim=8", "data_dir=d", "log_dir=l"])
    assert (config.model.cfg.name, config.model.cfg.latent_dim) == ("vae", 8)
    assert compose_presets("experiment=lite", "model=lite-dae").model.cfg.widths == (24, 48, 96, 192)


def test_the_denoising_preset_takes_the_published_steps() -> None:
    config = compose_presets("experiment=DAE/DAE")
    trainer, data = config.trainer, config.datamodule.cfg
    assert (config.model.cfg.name, config.model.cfg.widths) == ("dae", (64, 128, 256, 512))
    assert (trainer.max_steps, trainer.decay_steps, data.batch_size, data.lr) == (67200, 67200, 16, 1e-4)


def test_groups_go_before_the_experiment() -> None:
    config = compose_presets("experiment=lite", "model=ddpm", "logger=wandb", "trainer=smoke")
    assert config.model.cfg.unet_dim == 128
    assert config.datamodule.cfg.affine == "used"
    assert config.logger.wandb
    assert config.trainer.max_epochs == 2


def test_reference_shares_noise_in_training() -> None:
    assert compose_presets("experiment=smoke", "reference=True").model.cfg.shared_noise
    assert not compose_presets("experiment=smoke").model.cfg.shared_noise


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("resume_train=True", "It is called resume here"),
        ("model.cfg.objective=pred_x0", "predicts the clean image"),
        ("model.cfg.OpenaiUnet=True", "is the only one"),
        ("trainer.ckpt_path=last.ckpt", "resume=True"),
        ("datamodule.cfg.testsets=[MSLUB]", "--sets"),
        ("logger.wandb.project=mine", "logger.project"),
        ("model.cfg.condition=True", "model=cddpm"),
    ],
)
def test_settings_that_only_the_release_has_are_explained(word: str, hint: str) -> None:
    with pytest.raises(UnknownName, match=hint):
        check_names([word])


@pytest.mark.parametrize(
    ("preset", "model", "epochs"),
    [
        ("cDDPM/DDPM_cond", {"name": "cddpm", "encoder": "resnet50", "noise_ensemble": True, "unet_dim": 128}, 1200),
        ("cDDPM/Spark_2D_pretrain", {"name": "spark", "encoder": "resnet50", "decoder_width": 512}, 1200),
        ("pDDPM/DDPM_patched", {"name": "pddpm", "patch_size": 48, "test_timesteps": 500}, 1600),
        ("cddpm", {"name": "cddpm", "encoder": "small"}, 1600),
    ],
)
def test_presets_of_published_models(preset: str, model: dict[str, Any], epochs: int) -> None:
    config = compose_presets(f"experiment={preset}")
    assert {name: getattr(config.model.cfg, name) for name in model} == model
    assert (config.trainer.max_epochs, config.datamodule.cfg.imageDim) == (epochs, (192, 192, 100))
    check_settings(config)


def test_a_pretrained_encoder_must_be_given_to_train() -> None:
    preset = "experiment=cDDPM/DDPM_cond_spark_2D"
    with pytest.raises(InputError, match=r"model\.cfg\.pretrained_encoder: has no value"):
        check_settings(compose_presets(preset))
    check_settings(compose_presets(preset, "onlyEval=True", "load_checkpoint=run"))
    config = compose_presets(preset, "model.cfg.pretrained_encoder=folder")
    check_settings(config)
    assert (config.model.cfg.encoder, config.model.cfg.pretrained_encoder) == ("resnet50", "folder")


@pytest.mark.parametrize("model", ["lite", "lite-cddpm", "lite-pddpm", "lite-spark"])
def test_lite_networks_have_some_million_weights(model: str) -> None:
    settings = compose_presets("experiment=lite", f"model={model}").model.cfg
    with torch.device("meta"):
        network = MODELS[settings.name](settings)
    assert 1e6 < sum(weight.numel() for weight in network.parameters()) < 4.5e6


def test_flags() -> None:
    flags, overrides = split_arguments(["-m", "--resume", "seed=1", "--cfg", "job", "--allow-leaks"])
    assert flags == ["-m", "--cfg", "job"]
    assert overrides == ["resume=True", "seed=1", "allow_leaks=True"]


def test_check_names_leaves_sweeps_and_hydra_alone() -> None:
    check_names(["seed=1,2", "model=lite,smoke", "hydra.verbose=true"])
    check_names(["model=mine"], own_files=True)
    with pytest.raises(UnknownName):
        check_names(["modle=mine"], own_files=True)


def test_environment_file(tmp_path: Path) -> None:
    path = tmp_path / "pc_environment.env"
    path.write_text(
        "\ufeff# a comment\n\nDATA_DIR = /data/mine # where\nexport LOG_DIR=\"/logs # 1\"\r\nOTHER='x y'\nEMPTY=\n",
        encoding="utf-8",
    )
    assert read_environment(path) == {"DATA_DIR": "/data/mine", "LOG_DIR": "/logs # 1", "OTHER": "x y", "EMPTY": ""}
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
