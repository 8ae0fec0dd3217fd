"""Anomaly scores: how unlike its reconstruction a scan is, voxel by voxel.

A score is a function ``f(image, reconstructions, mask) -> map``, registered by name: ``image`` is (X, Y, Z)
with the brain in [0, 1], ``reconstructions`` (S, X, Y, Z) on the same scale, ``mask`` (X, Y, Z) is true in
the brain. The map is (X, Y, Z), higher is more anomalous, and zero outside the mask. The built-in scores
compare the image with the mean of its reconstructions; those ``OF_THE_IMAGE`` need none. `score_maps` computes
several at once and shares what they have in common.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from brainuad.config import SSIM_SIGMAS
from brainuad.registry import SCORES
from brainuad.scoring._arrays import as_volume, keep_inside
from brainuad.scoring.ssim import fuse_maps, ssim_ensemble, ssim_maps

OF_THE_IMAGE = ("intensity_bright", "intensity_dark", "random")


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
                raise ValueError(
                    f"image has shape {tuple(self.image.shape)}, reconstructions {tuple(stack.shape)}"
                )
        self.sigmas = tuple(sigmas)
        self.keep = keep
        self._ssim: dict[float, Tensor] = {}

    @property
    def reconstruction(self) -> Tensor:
        """The mean reconstruction."""
        if self._mean is None:
            raise ValueError("there is no reconstruction to compare with")
        return self._mean

    def ssim(self, sigmas: Sequence[float]) -> list[Tensor]:
        """Return the SSIM maps at the given widths, each computed once."""
        missing = [sigma for sigma in dict.fromkeys(sigmas) if sigma not in self._ssim]
        if missing:
            maps = ssim_maps(self.reconstruction, self.image, sigmas=missing)
            self._ssim.update(zip(missing, maps, strict=True))
        return [self._ssim[sigma] for sigma in sigmas]

    @cached_property
    def absolute_error(self) -> Tensor:
        """|image - reconstruction|."""
        return (self.image - self.reconstruction).abs()

    @cached_property
    def dissimilarity(self) -> Tensor:
        """One minus the SSIM ensemble, in [0, 2]."""
        if self.keep:
            return 1 - fuse_maps(similarity[None] for similarity in self.ssim(self.sigmas))
        return 1 - ssim_ensemble(self.reconstruction, self.image, sigmas=self.sigmas)


_SharedScore = Callable[[_Comparison], Tensor]
_BUILT_IN: dict[str, _SharedScore] = {}


def _built_in(name: str) -> Callable[[_SharedScore], _SharedScore]:
    """Register a score that is a function of a comparison, so that `score_maps` can share the comparison."""

    def decorate(shared: _SharedScore) -> _SharedScore:
        def score(image: Any, reconstructions: Any, mask: Any) -> Tensor:
            return keep_inside(shared(_Comparison(image, reconstructions)), mask)

        score.__name__ = score.__qualname__ = name
        score.__doc__ = shared.__doc__
        SCORES.register(name)(score)
        _BUILT_IN[name] = shared
        return shared

    return decorate


def score_maps(
    image: Any,
    reconstructions: Any | None,
    mask: Any,
    names: Iterable[str],
    *,
    sigmas: Sequence[float] = SSIM_SIGMAS,
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
    names = list(names)
    comparison = _Comparison(image, reconstructions, sigmas, keep=not _SINGLE_WIDTHS.isdisjoint(names))
    maps = {}
    for name in names:
        if name in _BUILT_IN:
            maps[name] = keep_inside(_BUILT_IN[name](comparison), mask)
        else:
            maps[name] = SCORES[name](image, reconstructions, mask)
    return maps


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


def _single_width(sigma: float) -> _SharedScore:
    def shared(comparison: _Comparison) -> Tensor:
        return 1 - comparison.ssim([sigma])[0]

    shared.__doc__ = f"One minus SSIM with a Gaussian window of width {sigma} voxels, in [0, 2]."
    return shared


_SINGLE_WIDTHS = {f"ssim_{sigma:g}" for sigma in SSIM_SIGMAS}
for _sigma in SSIM_SIGMAS:
    _built_in(f"ssim_{_sigma:g}")(_single_width(_sigma))
