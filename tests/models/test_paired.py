"""A diffusion model and a denoising autoencoder as one model: each does what it does alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from brainuad.config import DataConfig
from brainuad.detector import Detector
from brainuad.errors import InputError
from brainuad.models.denoising import DenoisingAutoencoder
from brainuad.models.diffusion import DiffusionModel
from brainuad.models.paired import PairedModel, PairedSettings
from brainuad.scoring import score_maps
from brainuad.scoring.health import HealthyStatistics
from brainuad.scoring.names import base_of, describe
from brainuad.study.scorer import CachedInference

SHAPE = (24, 20, 6)


@pytest.fixture
def detector() -> Detector:
    torch.manual_seed(1)
    settings = PairedSettings(unet_dim=8, dim_mults=(1, 2), num_res_blocks=1, attention_head_dim=8, widths=(4, 8))
    model = PairedModel(settings).requires_grad_(False).eval()
    return Detector(model, settings, DataConfig(), name="tiny", precision="float32")


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(2).random(SHAPE).astype(np.float32)


@pytest.fixture
def mask() -> np.ndarray:
    mask = np.zeros(SHAPE, dtype=bool)
    mask[3:-3, 3:-3, 1:-1] = True
    return mask


def alone(detector: Detector) -> tuple[DiffusionModel, DenoisingAutoencoder]:
    """The two networks, each in a model of its own."""
    weights = detector.model.state_dict()
    diffusion, denoiser = DiffusionModel(detector.model_config), DenoisingAutoencoder(detector.model_config)
    diffusion.load_state_dict({k: v for k, v in weights.items() if not k.startswith("denoiser.")})
    denoiser.load_state_dict({k.removeprefix("denoiser."): v for k, v in weights.items() if k.startswith("denoiser.")})
    return diffusion.eval(), denoiser.eval()


def test_both_reconstruct_as_alone(detector: Detector, image: np.ndarray) -> None:
    diffusion, denoiser = alone(detector)
    found = detector.infer(image, None, seed=3)
    slices = torch.from_numpy(image).permute(2, 0, 1)[:, None]
    expected = diffusion.reconstruct(slices, torch.Generator().manual_seed(3))
    torch.testing.assert_close(found.reconstruction[0], expected[:, 0].permute(1, 2, 0))
    with torch.inference_mode():
        second = denoiser.reconstruct(slices, None)
    torch.testing.assert_close(detector.reconstruct_second(image), second[:, 0].permute(1, 2, 0))


def test_the_loss_is_the_sum(detector: Detector, image: np.ndarray, mask: np.ndarray) -> None:
    slices, brain = (torch.from_numpy(array).permute(2, 0, 1)[:, None] for array in (image, mask))
    draws = detector.model.draw(SHAPE[2], SHAPE[:2], torch.Generator().manual_seed(4))
    diffusion, denoiser = alone(detector)
    expected = diffusion.loss(slices, brain, draws) + denoiser.loss(slices, brain, draws)
    torch.testing.assert_close(detector.model.loss(slices, brain, draws), expected)


def test_scores_of_the_second_reconstruction(detector: Detector, image: np.ndarray, mask: np.ndarray) -> None:
    names = ["l1", "second_l1", "second_ssim_1.3", "second_ssim_ensemble"]
    maps = detector.maps(image, mask, names, seed=3).raw
    second = detector.reconstruct_second(image)[None]
    expected = score_maps(image, second, mask, ["l1", "ssim_1.3", "ssim_ensemble"])
    for name, map in expected.items():
        np.testing.assert_allclose(maps[f"second_{name}"], map, rtol=1e-6, atol=1e-5)
    assert not np.array_equal(maps["l1"], maps["second_l1"])


def test_both_are_set_against_health(detector: Detector, image: np.ndarray, mask: np.ndarray) -> None:
    assert [part.score for part in detector.scores.ensemble.parts] == [
        "l1_ssim_z",
        "second_l1_ssim_z",
        "second_features",
    ]
    statistics = HealthyStatistics(["l1_ssim", "second_l1_ssim"], SHAPE)
    for seed in range(3):
        healthy = np.random.default_rng(seed).random(SHAPE).astype(np.float32)
        statistics.add(detector.maps(healthy, mask, ["l1_ssim", "second_l1_ssim"], clean=False).raw, mask)
    detector.health = statistics.carried()
    relative = detector.maps(image, mask, ["second_l1_ssim_z", "l1_ssim_z"], clean=False).raw
    for name, map in relative.items():
        raw = detector.maps(image, mask, [base_of(name)], clean=False).raw[base_of(name)]
        np.testing.assert_allclose(map, statistics.score(name, raw, mask), rtol=1e-6, atol=1e-5)


def test_names_of_scores(detector: Detector) -> None:
    assert base_of("second_l1_ssim_z") == "second_l1_ssim"
    assert describe("second_l1") == "l1 of the second reconstruction, of models that make two."
    for name in ("second_l3", "second_random", "second_mahalanobis", "second_second_l1"):
        with pytest.raises(InputError, match="unknown score"):
            detector.scores.makes(name)
    diffusion, _ = alone(detector)
    single = Detector(diffusion, detector.model_config, DataConfig(), name="single")
    assert not single.scores.makes("second_l1")
    for asked in (lambda: single.scores.check("second_l1"), lambda: single.reconstruct_second(np.zeros(SHAPE))):
        with pytest.raises(InputError, match="makes no second reconstruction"):
            asked()


def test_each_reconstruction_is_made_once_and_only_where_it_is_needed(
    detector: Detector, image: np.ndarray, mask: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    detector.data_config.cache_dir = str(tmp_path)
    for name in ("infer", "reconstruct_second"):
        original = getattr(Detector, name)
        spy = lambda self, *given, name=name, original=original, **named: (  # noqa: E731
            made.append(name) or original(self, *given, **named)
        )
        monkeypatch.setattr(Detector, name, spy)
    detector.maps(image, mask, ["l1", "ssim_ensemble"])
    assert made == ["infer"]
    first = CachedInference(detector)(image, mask, 0, ["l1"])
    assert made == ["infer", "infer"]
    both = CachedInference(detector)(image, mask, 0, ["l1", "second_l1"])
    assert made == ["infer", "infer", "reconstruct_second"]
    again = CachedInference(detector)(image, mask, 0, ["second_l1"])
    assert torch.equal(again.second, both.second)
    assert torch.equal(again.reconstruction, first.reconstruction)
    assert made == ["infer", "infer", "reconstruct_second"]
    assert not torch.equal(both.second, first.reconstruction[0])


def test_both_networks_are_compiled(detector: Detector) -> None:
    compiled = detector.compile()
    networks = [compiled.model.unet, compiled.model.denoiser.unet]
    assert all(network._compiled_call_impl is not None for network in networks)
    assert compiled.model.denoiser._compiled_call_impl is None
