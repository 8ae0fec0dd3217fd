"""A saved model keeps its settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from presets import compose_presets, saved_model

from brainuad.errors import InputError
from brainuad.experiment.runs import newest_run, with_saved_settings


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


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ("model: {cfg: {name: of_another_time}}", "of_another_time"),
        ("model: {cfg: {name: ddpm, unet_dims: 32}}", "unet_dims"),
        ("trainers: {max_epochs: 2}", "trainers"),
        ("seed: many", "many"),
        ("- a\n- list", "holds no settings"),
        ("seed: [1", "cannot be read"),
    ],
)
def test_a_run_of_another_version_is_told_and_not_resumed(settings: str, fault: str, tmp_path: Path) -> None:
    config = replace(compose_presets("experiment=smoke"), log_dir=str(tmp_path))
    run = tmp_path / config.name / config.datamodule.cfg.mode / f"seed{config.seed}" / "2026-01-01"
    (run / ".hydra").mkdir(parents=True)
    (run / ".hydra" / "config.yaml").write_text(settings)
    (run / "fold0").mkdir()
    (run / "fold0" / "training.json").write_text("{}")
    with pytest.raises(InputError, match=f"config.yaml: .*{fault}.*new run"):
        newest_run(config)
