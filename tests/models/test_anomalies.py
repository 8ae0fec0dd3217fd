"""Synthetic anomalies: within the brain, visible, the same from the same numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from brainuad.models import anomalies
from brainuad.models.anomalies import FAMILIES, NOTICEABLE, NUMBERS, SLOTS, paint
from brainuad.models.contrast import CONTRAST_NUMBERS, cut_noise, noise_bank, random_contrast

BANK = noise_bank()
SIZE = (4, 3, 28, 24)


def slabs(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images of smooth noise in [0, 1], 0 outside an ellipse, its masks, and the numbers of anomalies."""
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.meshgrid(torch.linspace(-1, 1, SIZE[2]), torch.linspace(-1, 1, SIZE[3]), indexing="ij")
    masks = (x.square() + y.square() < 0.8).expand(SIZE).clone()
    masks[3] = False  # a slab beyond the brain
    images = torch.nn.functional.avg_pool2d(torch.rand(SIZE, generator=generator), 3, stride=1, padding=1)
    return images * masks, masks, torch.rand(SIZE[0], SLOTS, NUMBERS, generator=generator)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_anomalies_are_within_the_brain_and_change_what_is_marked(seed: int) -> None:
    images, masks, numbers = slabs(seed)
    painted, lesion = paint(images, masks, numbers, BANK)
    assert painted.shape == images.shape
    assert lesion.shape == (SIZE[0], *SIZE[2:])
    assert lesion.dtype == torch.bool
    assert torch.equal(painted[~masks], images[~masks])
    assert not (lesion & ~masks[:, 1]).any()
    assert not lesion[3].any()
    assert -0.2 <= painted.min() <= painted.max() <= 1.5
    changed = (painted[:, 1] - images[:, 1]).abs() > 0
    assert not (lesion.flatten(1).any(1) & ~changed.flatten(1).any(1)).any(), "what is marked was changed"


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_one_way_of_computing_families_gives_what_the_other_does(seed: int) -> None:
    images, masks, numbers = slabs(seed)
    some, marked = paint(images, masks, numbers, BANK, every_family=False)
    every, marked_too = paint(images, masks, numbers, BANK, every_family=True)
    torch.testing.assert_close(some, every, rtol=0, atol=1e-5)
    assert (marked != marked_too).float().mean() < 1e-3  # a pixel at the edge, by rounding


def test_the_same_numbers_paint_the_same() -> None:
    images, masks, numbers = slabs()
    before = images.clone()
    first, marks = paint(images, masks, numbers, BANK)
    again, marks_again = paint(images, masks, numbers, BANK)
    assert torch.equal(first, again)
    assert torch.equal(marks, marks_again)
    assert torch.equal(images, before)
    assert not torch.equal(first, paint(images, masks, 1 - numbers, BANK)[0])
    assert torch.equal(noise_bank(), BANK)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_seen(family: str) -> None:
    for seed in range(20):
        images, masks, numbers = slabs(seed)
        numbers[:, 0, 0], numbers[:, 0, 3] = 0, 0.9  # a large one in each
        _, lesion = paint(images, masks, numbers, BANK, [family])
        if lesion.any():
            return
    pytest.fail(f"{family} never shows")


def test_families_that_are_left_out_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(site: anomalies.Site) -> torch.Tensor:
        raise AssertionError("left out")

    for name in FAMILIES:
        if name != "shift":
            monkeypatch.setitem(FAMILIES, name, (FAMILIES[name][0], refuse))
    images, masks, numbers = slabs()
    paint(images, masks, numbers, BANK, ["shift"])
    paint(images, masks, numbers, BANK, ["shift"], every_family=True)
    with pytest.raises(AssertionError, match="left out"):
        paint(images, masks, numbers, BANK, every_family=True)


def test_what_cannot_be_seen_is_not_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "shift", (1.0, lambda site: site.images + NOTICEABLE / 2))
    images, masks, numbers = slabs()
    painted, lesion = paint(images, masks, numbers, BANK, ["shift"])
    assert not lesion.any()
    assert not torch.equal(painted, images)


def test_without_anomalies_nothing_changes() -> None:
    images, masks, numbers = slabs()
    numbers[:, :, 0] = 0.99  # none is offered
    painted, lesion = paint(images, masks, numbers, BANK)
    assert torch.equal(painted, images)
    assert not lesion.any()


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), cell=st.floats(1, 30))
def test_cut_noise_has_a_variance_of_about_one(seed: int, cell: float) -> None:
    uniform = torch.rand(64, 4, generator=torch.Generator().manual_seed(seed))
    noise = cut_noise(BANK, uniform, torch.full((64,), cell), (40, 32))
    assert noise.shape == (64, 40, 32)
    assert 0.5 < noise.var() < 2.5


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000), inverted=st.sampled_from([0.0, 0.5, 1.0]))
def test_versions_of_a_slab_get_the_same_look(seed: int, inverted: float) -> None:
    images, masks, _ = slabs(seed)
    uniform = torch.rand(SIZE[0], CONTRAST_NUMBERS, generator=torch.Generator().manual_seed(seed))
    first, second = random_contrast([images, images.clone()], masks, uniform, BANK, inverted)
    assert torch.equal(first, second)
    assert first.shape == images.shape
    assert not first[~masks].any()
    assert first.isfinite().all()


def test_contrast_rises_unless_it_is_inverted() -> None:
    masks = torch.ones(1, 1, 16, 16, dtype=torch.bool)
    ramp = torch.linspace(0, 1, 16).expand(1, 1, 16, 16).clone()
    uniform = torch.full((1, CONTRAST_NUMBERS), 0.9)
    uniform[:, 1:7] = torch.tensor([0.9, 0.1, 0.8, 0.3, 0.6, 0.2])
    uniform[:, 8] = 0.1  # near a falling curve, where it is free
    (plain,) = random_contrast([ramp], masks, uniform, BANK, 0.0)
    (free,) = random_contrast([ramp], masks, uniform, BANK, 1.0)
    assert (plain[0, 0].diff(dim=1) >= -1e-6).all()
    assert free[0, 0, :, 0].mean() > free[0, 0, :, -1].mean()


def test_rows_of_a_site() -> None:
    images = torch.rand(3, 1, 4, 4)
    site = anomalies.Site(images, images, images, images, images, images.expand(3, 2, 4, 4), torch.rand(3, 13))
    picked = site.rows(torch.tensor([2]))
    assert torch.equal(picked.images, images[2:])
    assert replace(picked, uniform=torch.zeros(1, 13)).sign(0).item() == -1
