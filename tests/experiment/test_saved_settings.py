"""A saved model keeps its settings."""

from __future__ import annotations

from pathlib import Path

import pytest
from presets import compose_presets, saved_model

from brainuad.errors import InputError
from brainuad.experiment.runs import with_saved_settings


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
