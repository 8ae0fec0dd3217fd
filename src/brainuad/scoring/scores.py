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
from functools import cached_property, partial
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
    about: str | None = None

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
    keep = any(_SSIM.fullmatch(name) and name != "ssim_ensemble" for name in map(_of_either, entries))
    comparison = _Comparison(image, reconstructions, sigmas, keep=keep)
    return {
        name: keep_inside(entry.of(comparison), mask)
        if isinstance(entry, _Score)
        else entry(image, reconstructions, mask)
        for name, entry in entries.items()
    }


def about_score(name: str) -> str:
    """Return what a registered score is for, in a line: what its function's docstring begins with.

    Raises:
        InputError: It is not registered.
    """
    entry = SCORES[name]
    if name.startswith(SECOND):
        return f"{_of_either(name)} of the second reconstruction, of models that make two."
    text = entry.about if isinstance(entry, _Score) else entry.__doc__
    line = " ".join((text or "").strip().split("\n\n")[0].split()).removeprefix("Return the ")
    return line[:1].upper() + line[1:]


def _built_in(name: str) -> Callable[[Callable[[_Comparison], Tensor]], _Score]:
    return lambda of: SCORES.register(name)(_Score(of, of.__doc__))


@_built_in("l1")
def _l1(comparison: _Comparison) -> Tensor:
    """Absolute difference, the classical score."""
    return comparison.absolute_error


@_built_in("l2")
def _l2(comparison: _Comparison) -> Tensor:
    """Squared difference."""
    return comparison.absolute_error.square()


@_built_in("ssim_ensemble")
def _ssim_ensemble(comparison: _Comparison) -> Tensor:
    """One minus the SSIM ensemble (Behrendt et al., ISBI 2024), in [0, 2]."""
    return comparison.dissimilarity


@_built_in("l1_ssim")
def _l1_ssim(comparison: _Comparison) -> Tensor:
    """Absolute difference times one minus the SSIM ensemble: different in intensity and in structure."""
    return comparison.absolute_error * comparison.dissimilarity


@_built_in("brighter")
def _brighter(comparison: _Comparison) -> Tensor:
    """How much brighter than its reconstruction: lesions on T2 and FLAIR."""
    return comparison.excess


@_built_in("brighter_ssim")
def _brighter_ssim(comparison: _Comparison) -> Tensor:
    """How much brighter than its reconstruction, times one minus the SSIM ensemble: lesions on T2 and FLAIR."""
    return comparison.excess * comparison.dissimilarity


@_built_in("intensity_bright")
def _intensity_bright(comparison: _Comparison) -> Tensor:
    """The image itself, a baseline without a model: lesions are bright on T2 and FLAIR."""
    return comparison.image.clamp(min=0)


@_built_in("intensity_dark")
def _intensity_dark(comparison: _Comparison) -> Tensor:
    """One minus the image, a baseline without a model: lesions are dark on T1."""
    return (1 - comparison.image).clamp(min=0)


@_built_in("random")
def _random(comparison: _Comparison) -> Tensor:
    """Random numbers in [0, 1), the level of chance; the image is the seed, so every case has its own."""
    digest = hashlib.sha256(comparison.image.cpu().numpy().tobytes()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.rand(comparison.image.shape, generator=generator).to(comparison.image.device)


def _of_either(name: str) -> str:
    """Return the score that a score of the second reconstruction is."""
    return name.removeprefix(SECOND)


@SCORES.family
def _of_second(name: str) -> Callable[..., Any] | None:
    """Return the score whose name stands behind ``second_``, if it needs one reconstruction."""
    which = _of_either(name)
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
    try:
        if how.startswith("weights:"):
            weights = [float(weight) for weight in how.removeprefix("weights:").split(",")]
            return _Score(partial(_ssim_of_widths, how=LEARNT, weights=weights, flat=flat))
        if how in ENSEMBLES and how != LEARNT:
            return _Score(partial(_ssim_of_widths, how=how, flat=flat))
        width = float(how) if _NUMBER.fullmatch(how) else 0.0
    except ValueError:
        return None
    return _Score(partial(_ssim_of_width, width=width, flat=flat)) if 0 < width <= MAX_WIDTH else None


def _ssim_of_widths(comparison: _Comparison, how: str, weights: Sequence[float] = (), *, flat: bool) -> Tensor:
    return ensemble(torch.stack(comparison.ssim(comparison.sigmas, flat=flat)), how, weights)


def _ssim_of_width(comparison: _Comparison, width: float, *, flat: bool) -> Tensor:
    return 1 - comparison.ssim([width], flat=flat)[0]


for _sigma in SSIM_SIGMAS:
    SCORES.register(f"ssim_{_sigma:g}")(
        _Score(
            partial(_ssim_of_width, width=_sigma, flat=False),
            f"One minus SSIM with a Gaussian window of {_sigma:g} voxels; any width may be named.",
        )
    )
