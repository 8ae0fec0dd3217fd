"""A detector in and out of a folder, and whole scans scored in their own grid."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny import tiny_detector

import brainuad
from brainuad.config import DataConfig
from brainuad.detector import Detector, load_model
from brainuad.errors import InputError
from brainuad.modelfile import known_models
from brainuad.models.base import Model
from brainuad.scoring import ssim_ensemble
from brainuad.scoring.health import HealthyStatistics
from brainuad.scoring.mahalanobis import mahalanobis
from brainuad.scoring.names import score_names


@pytest.fixture(scope="module")
def detector() -> Detector:
    return tiny_detector()


@pytest.fixture
def folder(detector: Detector, tmp_path: Path) -> Path:
    detector.save(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture(scope="module")
def volume() -> np.ndarray:
    return np.random.default_rng(1).random((40, 48, 6), dtype=np.float32)


def test_round_trip(detector: Detector, folder: Path, volume: np.ndarray) -> None:
    loaded = load_model(folder, "cpu", "float32")
    assert loaded.model_config == detector.model_config
    assert loaded.data_config == detector.data_config
    assert loaded.calibration == detector.calibration
    assert loaded.provenance["seed"] == 3
    assert loaded.provenance["version"] == brainuad.__version__
    assert loaded.name == "model"
    assert loaded.modality == "t1"
    assert loaded.fingerprint == detector.fingerprint
    assert torch.equal(loaded.reconstruct(volume), detector.reconstruct(volume))
    assert not list(folder.glob(".partial*"))


def test_saved_again_the_config_does_not_change(folder: Path, tmp_path: Path) -> None:
    load_model(folder, "cpu").save(tmp_path / "again")
    assert (tmp_path / "again" / "config.yaml").read_bytes() == (folder / "config.yaml").read_bytes()


def test_what_it_knows_of_health_goes_with_it(tmp_path: Path, volume: np.ndarray) -> None:
    detector, inside = tiny_detector(), np.zeros(volume.shape, bool)
    inside[5:-5, 5:-5, 1:-1] = True
    statistics = HealthyStatistics(["l1"], volume.shape)
    for seed in range(3):
        statistics.add({"l1": np.random.default_rng(seed).random(volume.shape)}, inside)
    detector.health = statistics.carried()
    detector.save(tmp_path)
    loaded = Detector.load(tmp_path)
    maps = loaded.maps(volume, inside, ("l1", "l1_z"), clean=False).raw
    np.testing.assert_allclose(maps["l1_z"], loaded.health.score("l1_z", maps["l1"], inside), rtol=1e-6, atol=1e-5)
    other = loaded.with_settings(test_timesteps=250)
    with pytest.raises(InputError, match="needs healthy scans to compare with; tiny is not calibrated on any"):
        tiny_detector().maps(volume, inside, ("l1_z",))
    with pytest.raises(InputError, match="needs healthy scans"):
        other.scores.check("intensity_atlas")


def test_paths_of_this_machine_are_not_saved(tmp_path: Path) -> None:
    tiny_detector(cache_dir="/somewhere", num_workers=7).save(tmp_path)
    assert "somewhere" not in (tmp_path / "config.yaml").read_text()
    assert Detector.load(tmp_path).data_config.num_workers == DataConfig().num_workers


def test_half_precision_is_cast_on_load(detector: Detector, tmp_path: Path, volume: np.ndarray) -> None:
    detector.save(tmp_path, bits=16)
    assert {value.dtype for value in load_file(tmp_path / "model.safetensors").values()} == {torch.float16}
    loaded = Detector.load(tmp_path)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    assert torch.allclose(loaded.reconstruct(volume), detector.reconstruct(volume), atol=1e-2)


def test_8_bits_are_spread_on_load(detector: Detector, tmp_path: Path) -> None:
    detector.save(tmp_path, bits=8)
    stored = load_file(tmp_path / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.int8, torch.float16, torch.float32}
    loaded = Detector.load(tmp_path)
    for (name, before), after in zip(detector.model.named_parameters(), loaded.model.parameters(), strict=True):
        error = (after - before).abs().max()
        assert after.dtype == torch.float32
        assert error <= before.abs().max() * (0.51 / 127 if before.ndim > 1 else 2**-11), name


def test_8_bits_without_their_scales(detector: Detector, tmp_path: Path) -> None:
    detector.save(tmp_path, bits=8)
    stored = load_file(tmp_path / "model.safetensors")
    name = next(name for name in stored if name.endswith(":scales"))
    save_file({key: value for key, value in stored.items() if key != name}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"is torch\.int8, and its scales are missing"):
        Detector.load(tmp_path)
    save_file({**stored, "nothing:scales": stored[name].clone()}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="holds 'nothing:scales', which the settings do not have"):
        Detector.load(tmp_path)


def test_scales_that_do_not_fit_the_weights(detector: Detector, tmp_path: Path) -> None:
    detector.save(tmp_path, bits=8)
    stored = load_file(tmp_path / "model.safetensors")
    name = next(name for name in stored if name.endswith(":scales"))
    save_file({**stored, name: stored[name][:-1]}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="and its scales do not fit together"):
        Detector.load(tmp_path)


def test_fingerprint_follows_weights_and_settings(folder: Path) -> None:
    loaded = load_model(folder, "cpu")
    before = loaded.fingerprint
    loaded.data_config.cache_dir = "/elsewhere"
    assert loaded.fingerprint == before
    loaded.model_config.test_timesteps = 250
    assert loaded.fingerprint != before
    loaded.model_config.test_timesteps = 500
    next(loaded.model.parameters()).view(-1)[0] += 1
    assert loaded.fingerprint != before


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.yaml"
    settings = yaml.safe_load(path.read_text())
    for key, value in changes.items():
        if isinstance(value, dict):
            settings[key].update(value)
        else:
            settings[key] = value
    path.write_text(yaml.safe_dump(settings))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": {"unet_dmi": 8}}, "unet_dmi"),
        ({"model": {"unet_dim": "eight"}}, "unet_dim"),
        ({"model": {"unet_dim": 16}}, "shape"),
        ({"model": {"num_res_blocks": 2}}, "holds no"),
        ({"model": {"name": "ddmp"}}, "Did you mean 'ddpm'"),
        ({"model": {"noisetype": "${oc.env:HOME}"}}, "interpolation"),
        ({"data": {"colour": 1}}, "colour"),
        ({"data": "t1"}, "lacks the settings"),
        ({"format": 99}, "Update brainuad"),
    ],
)
def test_unusable_config(folder: Path, changes: dict[str, Any], words: str) -> None:
    edit_config(folder, **changes)
    with pytest.raises(InputError, match=words):
        Detector.load(folder)


@pytest.mark.parametrize("content", [b"a: [1", b"\xff\xfe", b"", b"just text", b"- 1\n- 2\n"])
def test_config_is_no_config(folder: Path, content: bytes) -> None:
    (folder / "config.yaml").write_bytes(content)
    with pytest.raises(InputError, match=r"config\.yaml"):
        Detector.load(folder)


def test_weights_that_are_a_pickle(folder: Path) -> None:
    """A pickle runs what it says when it is opened; it must not be opened."""

    class Bomb:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return Path.touch, (folder / "exploded",)

    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputError, match="not a safetensors file"):
        Detector.load(folder)
    assert not (folder / "exploded").exists()


def test_damaged_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="not a safetensors file"):
        Detector.load(folder)


def test_weights_that_are_no_numbers(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] = torch.nan
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(InputError, match="NaN"):
        Detector.load(folder)


def test_surplus_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors") | {"extra": torch.zeros(1)}
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(InputError, match="'extra', which the settings do not have"):
        Detector.load(folder)


@pytest.mark.parametrize("content", ["{", "[1]", "{}", '{"format": 3}', "[" * 100_000])
def test_damaged_calibration(folder: Path, content: str) -> None:
    (folder / "calibration.json").write_text(content)
    with pytest.raises(InputError, match=r"calibration\.json"):
        Detector.load(folder)


@pytest.mark.parametrize("name", ["config.yaml", "model.safetensors"])
def test_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(InputError, match="no such file"):
        Detector.load(folder)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        Detector.load(tmp_path / "nothing")
    with pytest.raises(InputError, match="neither a shipped model nor a folder"):
        load_model("no-such-model")


def test_repr_is_one_line(detector: Detector) -> None:
    assert repr(detector).startswith("Detector(tiny: ")
    assert "not calibrated" in repr(replace(detector, calibration=None))
    assert len(repr(detector)) < 120


def test_shipped_models_load_by_name() -> None:
    for name in known_models():
        assert load_model(name, "cpu").name == name
        with pytest.raises(InputError, match=name):
            load_model("no-such-model")


def test_bfloat16_reconstructs_almost_the_same(detector: Detector, volume: np.ndarray) -> None:
    reduced = replace(detector, precision="bfloat16")
    exact, rounded = detector.reconstruct(volume), reduced.reconstruct(volume)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    assert (rounded - exact).abs().max() < 0.01
    assert reduced.fingerprint == detector.fingerprint
    assert reduced.result_key != detector.result_key
    assert reduced.with_settings(test_timesteps=250).precision == "bfloat16"


def test_a_compiled_detector_stays_compiled(
    detector: Detector, volume: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(torch, "compile", lambda function: function)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **how: seen.append((module, how)))
    compiled = detector.compile()
    assert seen == [(compiled.model.unet, {"dynamic": False})]
    assert not detector.compiled
    assert compiled.fingerprint == detector.fingerprint
    assert compiled.result_key != detector.result_key
    torch.testing.assert_close(compiled.reconstruct(volume), detector.reconstruct(volume), atol=1e-4, rtol=0)
    other = compiled.with_settings(test_timesteps=250)
    assert other.compiled
    assert seen[1:] == [(other.model.unet, {"dynamic": False})]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["ssim_ensemble", "l1_ssim_z", "intensity_atlas"])
def test_maps_on_a_gpu_are_those_of_the_processor(name: str) -> None:
    image = np.random.default_rng(0).random((80, 96, 72), dtype=np.float32)
    mask = image > 0.1
    here = load_model("lite-t1", "cpu", "float32").maps(image, mask, [name], clean=False).raw[name]
    there = load_model("lite-t1", "cuda", "float32").maps(image, mask, [name], clean=False).raw[name]
    np.testing.assert_allclose(there, here, rtol=1e-2, atol=1e-2)


def test_other_settings_same_weights(detector: Detector, volume: np.ndarray) -> None:
    other = detector.with_settings(test_timesteps=250)
    assert other.model_config.test_timesteps == 250
    assert other.calibration is None
    assert detector.model_config.test_timesteps == 500
    assert not torch.equal(other.reconstruct(volume), detector.reconstruct(volume))
    back = other.with_settings(test_timesteps=500)
    assert back.fingerprint == detector.fingerprint
    assert torch.equal(back.reconstruct(volume), detector.reconstruct(volume))
    assert detector.with_settings(test_timesteps=500) is detector
    with pytest.raises(InputError, match="not within"):
        detector.with_settings(test_timesteps=5000)
    with pytest.raises(InputError, match="do not fit the weights"):
        detector.with_settings(unet_dim=16)


def test_draws_are_independent_and_seeded(detector: Detector, volume: np.ndarray) -> None:
    two = detector.reconstruct(volume, seed=5, draws=2)
    assert two.shape == (2, *volume.shape)
    assert not torch.equal(two[0], two[1])
    assert torch.equal(two[:1], detector.reconstruct(volume, seed=5))
    assert not torch.equal(two[:1], detector.reconstruct(volume, seed=6))


def test_what_every_score_needs_is_known(detector: Detector, volume: np.ndarray) -> None:
    for name in score_names():
        assert detector.scores.draws([name]) == (10 if name.startswith("mahalanobis") else 1)
        assert detector.scores.needs_second([name]) == (name.startswith("second_"))
    shape, inside = volume.shape, np.ones(volume.shape, dtype=bool)
    statistics = HealthyStatistics(["image"], shape)
    for seed in range(3):
        statistics.add({"image": np.random.default_rng(seed).random(shape)}, inside)
    knowing = replace(detector, health=statistics.carried())
    found = knowing.maps(volume, inside, ["intensity_atlas"], clean=False).raw["intensity_atlas"]
    np.testing.assert_allclose(found, knowing.health.score("intensity_atlas", volume, inside), rtol=1e-6, atol=1e-5)


def test_a_score_gets_the_draws_it_wants_and_changes_no_other(detector: Detector, volume: np.ndarray) -> None:
    mask = np.ones(volume.shape, dtype=bool)
    assert (detector.scores.draws(["l1", "rarity"]), detector.scores.draws(["l1", "mahalanobis_z"])) == (1, 10)
    found = detector.maps(volume, mask, ["l1", "mahalanobis"], seed=4, clean=False)
    stack = detector.reconstruct(volume, seed=4, draws=10)
    np.testing.assert_array_equal(found.raw["mahalanobis"], mahalanobis(volume, stack, mask))
    np.testing.assert_array_equal(found.raw["l1"], detector.maps(volume, mask, ["l1"], seed=4, clean=False).raw["l1"])
    np.testing.assert_array_equal(found.reconstruction, stack[0])


def test_bad_shapes_are_programming_errors(detector: Detector, volume: np.ndarray) -> None:
    with pytest.raises(ValueError, match="X, Y, Z"):
        detector.reconstruct(volume[0])
    with pytest.raises(ValueError, match="draws"):
        detector.reconstruct(volume, draws=0)


def test_the_default_score_is_the_ssim_ensemble(detector: Detector, volume: np.ndarray) -> None:
    mask = np.ones(volume.shape, dtype=bool)
    reconstruction = detector.reconstruct(volume, seed=2)[0]
    similarity = ssim_ensemble(reconstruction, volume, sigmas=detector.model_config.sigma_ens)
    found = detector.maps(volume, mask, seed=2, clean=False)
    np.testing.assert_array_equal(found.raw["ssim_ensemble"], 1 - similarity)


def test_model_with_nothing_but_reconstruct(detector: Detector, volume: np.ndarray) -> None:
    class Half(Model):
        def __init__(self) -> None:
            super().__init__()
            self.factor = torch.nn.Parameter(torch.tensor(0.5))

        def reconstruct(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
            assert images.shape == (6, 1, 40, 48)
            return images * self.factor

    simple = Detector(Half(), detector.model_config, detector.data_config)
    assert torch.equal(simple.reconstruct(volume)[0], torch.from_numpy(volume) * 0.5)


def test_import_is_lazy() -> None:
    code = (
        "import sys, brainuad; dir(brainuad); heavy = {'torch', 'nibabel', 'scipy', 'SimpleITK', 'pandas'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules);"
        "brainuad.scoring.ssim_maps; brainuad.evaluation.best_dice; brainuad.models.build_unet;"
        "assert 'lightning' not in sys.modules;"
        "print(brainuad.load_model.__module__, brainuad.Volume.__name__)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout.split() == ["brainuad.detector", "Volume"], result.stderr


def test_unknown_attribute() -> None:
    with pytest.raises(AttributeError, match="no attribute 'scoer'"):
        brainuad.scoer  # noqa: B018
    assert json.loads(json.dumps(dir(brainuad))) == dir(brainuad)
