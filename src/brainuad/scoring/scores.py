"""Anomaly scores: how unlike its reconstruction a scan is, voxel by voxel.

A score is a function ``f(image, reconstructions, mask) -> map``, registered by name: ``image`` is (X, Y, Z)
with the brain in [0, 1], ``reconstructions`` (S, X, Y, Z) on the same scale, ``mask`` (X, Y, Z) is true in
the brain. The map is (X, Y, Z), higher is more anomalous, and zero outside the mask. The built-in scores
compare the image with the mean of its reconstructions; those ``OF_THE_IMAGE`` need none. `score_maps` computes
several at once and shares what they have in common.

What SSIM maps a score is made of stands in its name: ``ssim_1.1`` is of one width, any; ``ssim_mean`` is an ensemble
over the model's widths (`brainuad.scoring.ensembles`), ``ssim_weights:0.25,0.75`` one of given weights; ``ssim2d_1.1``
and so on have two-dimensional windows in axial slices. ``second_<name>`` is the score ``<name>`` of the second
reconstruction, of models that make two.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from brainuad.config import SSIM_SIGMAS
from brainuad.errors import InputError
from brainuad.registry import SCORES
from brainuad.scoring._arrays import as_volume, keep_inside
from brainuad.scoring.ensembles import ENSEMBLES, LEARNT, ensemble, slicewise_ssim_maps
from brainuad.scoring.ssim import fuse_maps, ssim_ensemble, ssim_maps

OF_THE_IMAGE = ("intensity_bright", "intensity_dark", "random")
SECOND = "second_"  # before the name of a score of the second reconstruction
MAX_WIDTH = 50.0  # voxels


class _Comparison:
    """An image and the mean of its reconstructions, with their similarities computed when first asked for.

    With ``keep`` the SSIM maps of all widths are kept once they are computed, for scores that share them; without, the
    ensemble needs half the memory.
    """

    def __init__(
        self, image: Any, reconstructions: Any, sigmas: Sequence[float] = SSIM_SIGMAS, *, keep: bool = False
    ) -> None:
        self.image = as_volume(image, "image")
        self._mean: Tensor | None = None
        if reconstructions is not None:
            stack = as_volume(reconstructions, "reconstructions", 4).to(self.image.device)
            self._mean = stack[0] if len(stack) == 1 else stack.mean(0)
            if self._mean.shape != self.image.shape:
                raise ValueError(f"image has shape {tuple(self.image.shape)}, reconstructions {tuple(stack.shape)}")
        self.sigmas = tuple(sigmas)
        self.keep = keep
        self._ssim: dict[tuple[float, bool], Tensor] = {}

    @property
    def reconstruction(self) -> Tensor:
        """The mean reconstruction."""
        if self._mean is None:
            raise ValueError("there is no reconstruction to compare with")
        return self._mean

    def ssim(self, sigmas: Sequence[float], *, flat: bool = False) -> list[Tensor]:
        """Return the SSIM maps at the given widths, each computed once; ``flat``: with two-dimensional windows."""
        make = slicewise_ssim_maps if flat else ssim_maps
        missing = [sigma for sigma in dict.fromkeys(sigmas) if (sigma, flat) not in self._ssim]
        if missing:
            maps = make(self.reconstruction, self.image, sigmas=missing)
            self._ssim.update(zip([(sigma, flat) for sigma in missing], maps, strict=True))
        return [self._ssim[sigma, flat] for sigma in sigmas]

    @cached_property
    def absolute_error(self) -> Tensor:
        """|image - reconstruction|."""
        return (self.image - self.reconstruction).abs()

    @cached_property
    def excess(self) -> Tensor:
        """Image - reconstruction where that is positive, else 0."""
        return (self.image - self.reconstruction).clamp(min=0)

    @cached_property
    def dissimilarity(self) -> Tensor:
        """One minus the SSIM ensemble, in [0, 2]."""
        if self.keep:
            return 1 - fuse_maps(similarity[None] for similarity in self.ssim(self.sigmas))
        return 1 - ssim_ensemble(self.reconstruction, self.image, sigmas=self.sigmas)


@dataclass(frozen=True)
class _Score:
    """A score that is a function of a comparison, so that `score_maps` can share the comparison."""

    of: Callable[[_Comparison], Tensor]
    about: str = ""  # what it is for, in a line

    def __call__(self, image: Any, reconstructions: Any, mask: Any) -> Tensor:
        return keep_inside(self.of(_Comparison(image, reconstructions)), mask)


def score_maps(
    image: Any, reconstructions: Any | None, mask: Any, names: Iterable[str], *, sigmas: Sequence[float] = SSIM_SIGMAS
) -> dict[str, Tensor]:
    """Return several anomaly maps of one case; the built-in scores share their SSIM maps.

    Args:
        image: Volume (X, Y, Z), the brain in [0, 1].
        reconstructions: Volumes (S, X, Y, Z) on the same scale; None will do for scores ``OF_THE_IMAGE``.
        mask: Brain mask (X, Y, Z).
        names: Names in `brainuad.registry.SCORES`.
        sigmas: Gaussian widths of the SSIM ensemble, in voxels.

    Returns:
        One map (X, Y, Z) a name, in the order of ``names``.

    Raises:
        InputError: A name is not registered.
        ValueError: The shapes do not fit together, or a score needs reconstructions and there are none.
    """
    entries = {name: SCORES[name] for name in names}
    plain = [name.removeprefix(SECOND) for name in entries]
    keep = any(_SSIM.fullmatch(name) and name != "ssim_ensemble" for name in plain)
    comparison = _Comparison(image, reconstructions, sigmas, keep=keep)
    return {
        name: keep_inside(entry.of(comparison), mask)
        if isinstance(entry, _Score)
        else entry(image, reconstructions, mask)
        for name, entry in entries.items()
    }


def _random(pair: _Comparison) -> Tensor:
    digest = hashlib.sha256(pair.image.cpu().numpy().tobytes()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.rand(pair.image.shape, generator=generator).to(pair.image.device)


def _of_width(width: float, *, flat: bool, about: str = "") -> _Score:
    """Return the score that is one minus SSIM at one width."""
    return _Score(lambda pair: 1 - pair.ssim([width], flat=flat)[0], about)


_BUILT_IN = {
    "l1": _Score(lambda pair: pair.absolute_error, "Absolute difference, the classical score."),
    "l2": _Score(lambda pair: pair.absolute_error.square(), "Squared difference."),
    "ssim_ensemble": _Score(
        lambda pair: pair.dissimilarity, "One minus the SSIM ensemble (Behrendt et al., ISBI 2024), in [0, 2]."
    ),
    "l1_ssim": _Score(
        lambda pair: pair.absolute_error * pair.dissimilarity,
        "Absolute difference times one minus the SSIM ensemble: different in intensity and in structure.",
    ),
    "brighter": _Score(lambda pair: pair.excess, "How much brighter than its reconstruction: lesions on T2 and FLAIR."),
    "brighter_ssim": _Score(
        lambda pair: pair.excess * pair.dissimilarity,
        "How much brighter than its reconstruction, times one minus the SSIM ensemble: lesions on T2 and FLAIR.",
    ),
    "intensity_bright": _Score(
        lambda pair: pair.image.clamp(min=0),
        "The image itself, a baseline without a model: lesions are bright on T2 and FLAIR.",
    ),
    "intensity_dark": _Score(
        lambda pair: (1 - pair.image).clamp(min=0),
        "One minus the image, a baseline without a model: lesions are dark on T1.",
    ),
    "random": _Score(
        _random, "Random numbers in [0, 1), the level of chance; the image is the seed, so every case has its own."
    ),
}
for _sigma in SSIM_SIGMAS:
    _about = f"One minus SSIM with a Gaussian window of {_sigma:g} voxels; any width may be named."
    _BUILT_IN[f"ssim_{_sigma:g}"] = _of_width(_sigma, flat=False, about=_about)
for _name, _score in _BUILT_IN.items():
    SCORES.register(_name)(_score)


@SCORES.family
def _of_second(name: str) -> Callable[..., Any] | None:
    """Return the score whose name stands behind ``second_``, if it needs one reconstruction."""
    which = name.removeprefix(SECOND)
    if which == name or which.startswith(SECOND) or which in OF_THE_IMAGE or SCORES.draws.get(which, 1) > 1:
        return None
    try:
        return SCORES[which]
    except InputError:
        return None


_NUMBER = re.compile(r"\d+(\.\d+)?")
_SSIM = re.compile(r"ssim(?P<flat>2d)?_(?P<what>.+)")


@SCORES.family
def _of_ssim(name: str) -> _Score | None:
    """Return the score whose name spells out which SSIM maps it is made of, in [0, 2]."""
    match = _SSIM.fullmatch(name)
    if match is None:
        return None
    what, flat = match["what"], match["flat"] is not None
    how = "default" if what == "ensemble" else what
    weights: list[float] = []
    if how == LEARNT:  # its weights have to be given
        return None
    if how.startswith("weights:"):
        try:
            how, weights = LEARNT, [float(weight) for weight in how.removeprefix("weights:").split(",")]
        except ValueError:
            return None
    if how in ENSEMBLES:
        return _Score(lambda pair: ensemble(torch.stack(pair.ssim(pair.sigmas, flat=flat)), how, weights))
    width = float(how) if _NUMBER.fullmatch(how) else 0.0
    return _of_width(width, flat=flat) if 0 < width <= MAX_WIDTH else None
