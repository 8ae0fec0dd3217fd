import numpy as np
import pytest
import torch
from scipy import stats

from brainuad.config import SSIM_SIGMAS
from brainuad.errors import InputError
from brainuad.registry import SCORES
from brainuad.scoring import score_maps, scores, ssim_maps
from brainuad.scoring.ensembles import ensemble, slicewise_ssim_maps
from brainuad.scoring.names import base_of

BUILT_IN = [
    "l1",
    "l2",
    "ssim_ensemble",
    "l1_ssim",
    "brighter",
    "brighter_ssim",
    "intensity_bright",
    "intensity_dark",
    "random",
    *(f"ssim_{sigma}" for sigma in SSIM_SIGMAS),
]


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand((12, 11, 10), generator=generator) * 1.1 - 0.05
    reconstructions = image + 0.1 * torch.randn((3, 12, 11, 10), generator=generator)
    mask = torch.rand(image.shape, generator=generator) > 0.3
    return image, reconstructions, mask


def test_names():
    assert set(BUILT_IN) <= set(SCORES)
    assert all(SCORES[name].__doc__ for name in BUILT_IN)


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_score_keeps_the_contract(name, case):
    image, reconstructions, mask = case
    anomaly = SCORES[name](image, reconstructions, mask)
    assert anomaly.shape == image.shape
    assert anomaly.dtype == torch.float32
    assert (anomaly >= 0).all()
    assert (anomaly[~mask] == 0).all()
    assert torch.equal(anomaly, SCORES[name](image.numpy(), reconstructions.numpy(), mask.numpy()))


def test_ensemble_is_the_published_one(reference):
    anomaly = SCORES["ssim_ensemble"](reference["image"], reference["reconstruction"][np.newaxis], reference["mask"])
    expected = (1 - reference["ssim_ensemble"]) * reference["mask"]
    np.testing.assert_allclose(anomaly.numpy(), expected, atol=1e-3)


def test_formulas(case):
    image, reconstructions, mask = case
    maps = score_maps(image, reconstructions, mask, BUILT_IN)
    mean = reconstructions.mean(0)
    torch.testing.assert_close(maps["l1"], (image - mean).abs() * mask)
    torch.testing.assert_close(maps["l2"], (image - mean) ** 2 * mask)
    torch.testing.assert_close(maps["l1_ssim"], maps["l1"] * maps["ssim_ensemble"])
    brighter = image > mean
    torch.testing.assert_close(maps["brighter"], maps["l1"] * brighter)
    torch.testing.assert_close(maps["brighter_ssim"], maps["l1_ssim"] * brighter)
    torch.testing.assert_close(maps["ssim_0.9"], (1 - ssim_maps(mean, image, sigmas=[0.9])[0]) * mask)
    torch.testing.assert_close(maps["intensity_bright"], image.clamp(min=0) * mask)
    torch.testing.assert_close(maps["intensity_dark"], (1 - image).clamp(min=0) * mask)


def test_random_is_each_image_its_own_and_uniform(case):
    image, reconstructions, mask = case
    anomaly = SCORES["random"](image, reconstructions, mask)
    other = SCORES["random"](image + 1e-3, reconstructions, mask)
    assert torch.equal(anomaly, SCORES["random"](image, 2 * reconstructions, mask))
    assert not torch.equal(anomaly, other)
    assert stats.kstest(anomaly[mask].numpy(), "uniform").pvalue > 0.01


def test_several_scores_equal_each_alone_and_share_their_maps(case, monkeypatch):
    alone = {name: SCORES[name](*case) for name in BUILT_IN}
    widths = []

    def counted(*volumes, sigmas):
        widths.extend(sigmas)
        return ssim_maps(*volumes, sigmas=sigmas)

    monkeypatch.setattr(scores, "ssim_maps", counted)
    together = score_maps(*case, BUILT_IN)
    assert list(together) == BUILT_IN
    assert all(torch.equal(together[name], alone[name]) for name in BUILT_IN)
    assert sorted(widths) == sorted(SSIM_SIGMAS)


def test_widths_of_the_ensemble_can_be_set(case):
    maps = score_maps(*case, ["ssim_ensemble", "ssim_1.5"], sigmas=[1.5])
    torch.testing.assert_close(maps["ssim_ensemble"], maps["ssim_1.5"])


def test_names_say_which_ssim_maps(case):
    image, reconstructions, mask = case
    mean, sigmas = reconstructions.mean(0), [0.5, 1.5]
    names = ["ssim_1.1", "ssim_mean", "ssim_weights:0.25,0.75", "ssim2d_1.1", "ssim2d_ensemble", "ssim2d_max"]
    maps = score_maps(image, reconstructions, mask, names, sigmas=sigmas)
    (single,) = ssim_maps(mean, image, sigmas=[1.1])
    both = ssim_maps(mean, image, sigmas=sigmas)
    flat = slicewise_ssim_maps(mean, image, sigmas=[1.1, *sigmas])
    expected = [
        1 - single,
        1 - both.mean(0),
        1 - (both[0] + 3 * both[1]) / 4,
        1 - flat[0],
        ensemble(flat[1:], "default"),
        1 - flat[1:].amin(0),
    ]
    assert list(maps) == names
    for name, similarity in zip(names, expected, strict=True):
        torch.testing.assert_close(maps[name], similarity * mask, msg=name)
    torch.testing.assert_close(SCORES["ssim_1.1"](*case), maps["ssim_1.1"])
    assert base_of("ssim_1.1") is None
    assert base_of("ssim_1.1_z") == "ssim_1.1"
    assert SCORES["ssim_1.2"] is not None
    assert "ssim_1.2" not in set(SCORES)


@pytest.mark.parametrize("name", ["ssim_0", "ssim_51", "ssim_nan", "ssim_learnt", "ssim_weights:a", "l1_1.1"])
def test_names_that_say_nothing(name):
    with pytest.raises(InputError, match="unknown score"):
        SCORES[name]


def test_scores_of_others_are_called(case, monkeypatch):
    monkeypatch.setitem(SCORES._entries, "zero", lambda image, reconstructions, mask: image * 0)
    maps = score_maps(*case, ["zero", "l1"])
    assert (maps["zero"] == 0).all()


def test_what_is_outside_the_mask_does_not_leak_into_differences(case):
    image, reconstructions, mask = case
    reconstructions[:, ~mask] = float("nan")
    assert SCORES["l1"](image, reconstructions, mask).isfinite().all()


def test_unknown_name(case):
    with pytest.raises(InputError, match=r"ssim_ensembel.*Did you mean 'ssim_ensemble'"):
        score_maps(*case, ["ssim_ensembel"])


def test_wrong_shapes(case):
    image, reconstructions, mask = case
    with pytest.raises(ValueError, match=r"reconstructions must have 4 non-empty axes.*\(12, 11, 10\)"):
        score_maps(image, reconstructions[0], mask, ["l1"])
    with pytest.raises(ValueError, match=r"image has shape \(12, 11, 10\), reconstructions \(3, 12, 11, 9\)"):
        score_maps(image, reconstructions[..., 1:], mask, ["l1"])
    with pytest.raises(ValueError, match=r"mask has shape \(12, 11, 9\)"):
        score_maps(image, reconstructions, mask[..., 1:], ["l1"])
