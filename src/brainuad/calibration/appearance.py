"""The appearance of healthy scans on the model's grid, and warnings about scans that look different."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

from brainuad.calibration._values import numbers
from brainuad.data.placement import POOR_ALIGNMENT

LEVELS = np.linspace(0, 1, 51)  # of the quantile function of intensities
BLOCKS = 48  # blocks along the longest axis of the grid: about 4 mm each
MIDDLE, BRIGHT = (0.3, 0.6), (0.8, 1.0)  # quantiles of the healthy mean: in T1, grey and deep white matter
ONE_IN = 1000  # each limit warns of one in so many healthy scans, if the values are normally distributed
# fraction of the healthy scans' contrast; tumours reduce it by more than half, T2 and FLAIR to zero or below
LEAST_CONTRAST = 0.25
_AXES = ("left to right", "back to front", "bottom to top")
ENOUGH = 5  # fewest scans from which their spread is estimated


@dataclass(frozen=True, eq=False)
class Appearance:
    """Appearance of one scan.

    Attributes:
        quantiles: Quantiles at ``LEVELS`` of the intensities in the brain.
        blocks: Mean intensity of the brain by block of the grid, NaN where less than half of it is brain.
        brain_ml: Volume of the brain in the scan; None where it is unknown.
        alignment: Correlation of the registered scan with the atlas; None where it is unknown.
        detail: Result of `detail_of`, ``(3,)``.
    """

    quantiles: np.ndarray
    blocks: np.ndarray
    brain_ml: float | None
    alignment: float | None
    detail: np.ndarray


def appearance_of(image: Any, mask: Any, brain_ml: float | None = None, alignment: float | None = None) -> Appearance:
    """Measure the appearance of a scan.

    Args:
        image: ``(X, Y, Z)`` on the model's grid, the brain in [0, 1].
        mask: ``(X, Y, Z)`` brain mask, not empty.
        brain_ml: Volume of the brain in the scan, in mL.
        alignment: Correlation of the registered scan with the atlas.
    """
    values, inside = np.asarray(image, dtype=np.float64), np.asarray(mask, dtype=bool)
    size = -(-max(values.shape) // BLOCKS)
    filled = _block_means(inside, size)
    total = _block_means(np.where(inside, values, 0), size)
    blocks = np.divide(total, filled, out=np.full(filled.shape, np.nan), where=filled >= 0.5)
    quantiles = np.quantile(values[inside], LEVELS)
    return Appearance(quantiles, blocks, brain_ml, alignment, detail_of(values, inside))


def detail_of(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the amount of finest structure along each axis, ``(3,)``: low in thick slices, high in noise.

    It is the logarithm of the mean absolute second difference from voxel to voxel within the brain; NaN where the brain
    is too thin.
    """
    detail = np.full(3, np.nan)
    for axis in range(3):
        moved, brain = np.moveaxis(image, axis, 0), np.moveaxis(mask, axis, 0)
        within = brain[:-2] & brain[1:-1] & brain[2:]
        bends = np.abs(moved[:-2] - 2 * moved[1:-1] + moved[2:])[within]
        if bends.any():
            detail[axis] = np.log(bends.mean())
    return detail


@dataclass(frozen=True)
class HealthyAppearance:
    """Appearance of healthy scans. Any field may be empty, which means unknown.

    Attributes:
        quantiles: Mean over scans of the quantiles at ``LEVELS`` of the intensities in the brain.
        distances: For each scan, the mean absolute difference of its quantiles from the other scans' mean, which is
            the 1-Wasserstein distance of the two distributions; sorted.
        shape: Blocks of the grid along each axis.
        regions: The blocks where the mean over scans is ``MIDDLE``, then those where it is ``BRIGHT``: one bit a
            block in C order, as base64.
        contrasts: For each scan, its contrast between these regions, which the other scans define; sorted.
        brain_ml: Volumes of the brains in mL, sorted.
        alignment: Correlations with the atlas, sorted.
        detail: Results of `detail_of` of all scans, sorted, for the first axis, then the second, then the third.
    """

    quantiles: tuple[float, ...] = ()
    distances: tuple[float, ...] = ()
    shape: tuple[float, ...] = ()
    regions: str = ""
    contrasts: tuple[float, ...] = ()
    brain_ml: tuple[float, ...] = ()
    alignment: tuple[float, ...] = ()
    detail: tuple[float, ...] = ()

    @classmethod
    def of(cls, scans: Sequence[Appearance]) -> HealthyAppearance:
        """Summarise the appearance of at least two scans.

        Raises:
            ValueError: There are fewer, or the grids differ.
        """
        if len(scans) < 2:
            raise ValueError(f"{len(scans)} scan cannot be compared with others")
        quantiles = np.stack([scan.quantiles for scan in scans])
        blocks = np.stack([scan.blocks for scan in scans])
        rest = ~np.eye(len(scans), dtype=bool)
        detail = np.sort([scan.detail for scan in scans if np.isfinite(scan.detail).all()], axis=0)
        contrasts = (_contrast(blocks[i], _regions(blocks[other])) for i, other in enumerate(rest))
        distances = (_distance(quantiles[i], quantiles[other].mean(0)) for i, other in enumerate(rest))
        return cls(
            _rounded(quantiles.mean(0)),
            _rounded(sorted(distances)),
            blocks.shape[1:],
            base64.b64encode(np.packbits(_regions(blocks)).tobytes()).decode(),
            _rounded(sorted(contrast for contrast in contrasts if not math.isnan(contrast))),
            _rounded(sorted(scan.brain_ml for scan in scans if scan.brain_ml is not None)),
            _rounded(sorted(scan.alignment for scan in scans if scan.alignment is not None)),
            _rounded(detail.reshape(-1, 3).T.ravel()),
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> HealthyAppearance:
        """Read the values of `to_dict`; a ValueError says what is missing or cannot be used."""
        values = {"detail": [], **values}  # missing in older calibrations
        lists = {name: numbers(values, name) for name in vars(cls()) if name != "regions"}
        appearance = cls(**lists, regions=str(values.get("regions", "")))
        if appearance.quantiles and len(appearance.quantiles) != len(LEVELS):
            raise ValueError(f"has {len(appearance.quantiles)} quantiles of intensity, not {len(LEVELS)}")
        appearance.unpacked()
        return appearance

    @property
    def knows_alignment(self) -> bool:
        """Whether there are enough healthy scans to say what alignment is usual."""
        return len(self.alignment) >= ENOUGH

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}

    def unpacked(self) -> np.ndarray:
        """Return ``regions`` as ``(2, *shape)`` bool; a ValueError if they are damaged."""
        shape = [2, *(int(length) for length in self.shape)] if self.shape else [2, 0, 0, 0]
        try:
            stored = np.frombuffer(base64.b64decode(self.regions, validate=True), dtype=np.uint8)
            # checked first, so that a damaged shape allocates no memory
            if len(stored) != -(-math.prod(shape) // 8):
                raise ValueError("has damaged regions")
            return np.unpackbits(stored, count=math.prod(shape)).astype(bool).reshape(shape)
        except (binascii.Error, ValueError) as error:
            raise ValueError("has damaged regions") from error

    def warnings(self, scan: Appearance) -> list[str]:
        """Return warnings about the ways in which a scan looks different from the healthy scans."""
        warnings: list[str] = []
        other_kind = False
        if len(self.contrasts) >= ENOUGH and scan.blocks.shape == self.shape:
            contrast, usual = _contrast(scan.blocks, self.unpacked()), float(np.mean(self.contrasts))
            least = LEAST_CONTRAST * usual
            # On FLAIR a tenth of the healthy scans have next to none: there it tells nothing.
            if np.quantile(self.contrasts, 0.1) >= least and not contrast >= least:
                other_kind = True
                warnings.append(
                    f"contrast {contrast:.2f} where healthy scans have {usual:.2f}: another kind of scan than "
                    "the model's, or a failed registration"
                )
        if len(self.distances) >= ENOUGH and not other_kind:
            high = _limit(self.distances, "above")
            distance = _distance(scan.quantiles, np.asarray(self.quantiles))
            if distance > high:
                ours, theirs = told_apart(distance, high, digits=3)
                warnings.append(
                    f"the distribution of intensities is {ours} from the healthy scans'; the limit is {theirs}: "
                    "thresholds may not hold; calibrate on healthy scans of this scanner"
                )
        if not other_kind:
            # unusual intensities change the differences, too, so noise is not reported then
            warnings += self._detail_warnings(scan.detail, noise=not warnings)
        if scan.brain_ml is not None and len(self.brain_ml) >= ENOUGH:
            low, high = _limit(self.brain_ml, "below"), _limit(self.brain_ml, "above")
            if not low <= scan.brain_ml <= high:
                volume, *limits = told_apart(scan.brain_ml, low, high, digits=0)
                warnings.append(
                    f"brain volume {volume} mL is outside the healthy scans' {' to '.join(limits)} mL: "
                    "look at the brain mask"
                )
        if scan.alignment is not None and not other_kind:
            low = _limit(self.alignment, "below") if self.knows_alignment else POOR_ALIGNMENT
            if not scan.alignment >= low:
                ours, theirs = told_apart(scan.alignment, low, digits=2)
                warnings.append(
                    f"correlation {ours} with the atlas, below {theirs}: look whether the registration failed"
                )
        return warnings

    def _detail_warnings(self, detail: np.ndarray, *, noise: bool) -> list[str]:
        """Return warnings about axes with too little fine structure, or, with ``noise``, too much."""
        known = np.reshape(self.detail, (3, -1))
        if known.shape[1] < ENOUGH:
            return []
        low, high = (np.array([_limit(tuple(values), side) for values in known]) for side in ("below", "above"))
        warnings = []
        for wrong, what in ((detail < low, "blurred or in thick slices"), (detail > high, "noisy")):
            if wrong.any() and (noise or what != "noisy"):
                axes = ", ".join(name for name, there in zip(_AXES, wrong, strict=True) if there)
                ratio = np.exp((detail - known.mean(1))[wrong])
                most = ratio[np.abs(np.log(ratio)).argmax()]
                warnings.append(
                    f"{what} along {axes}: fine structure is {most:.2f} times the healthy scans'; "
                    "findings may be artefacts"
                )
        return warnings


def _limit(values: Sequence[float], side: str) -> float:
    """Return the limit beyond which one in ``ONE_IN`` further normally distributed values lies."""
    n, spread = len(values), float(np.std(values, ddof=1))
    reach = float(stdtrit(n - 1, 1 - 1 / ONE_IN)) * spread * math.sqrt(1 + 1 / n)
    return float(np.mean(values)) + (reach if side == "above" else -reach)


def _block_means(array: np.ndarray, size: int) -> np.ndarray:
    padded = np.pad(array.astype(np.float64), [(0, -length % size) for length in array.shape])
    x, y, z = (length // size for length in padded.shape)
    return padded.reshape(x, size, y, size, z, size).mean((1, 3, 5))


def _regions(blocks: np.ndarray) -> np.ndarray:
    """Return masks ``(2, x, y, z)`` of the blocks ``(N, x, y, z)`` whose mean over scans is middling, and bright."""
    known = np.isfinite(blocks)
    count = known.sum(0)
    total = np.where(known, blocks, 0).sum(0)
    mean = np.divide(total, count, out=np.full(count.shape, np.nan), where=count * 2 > len(blocks))
    if not np.isfinite(mean).any():
        return np.zeros((2, *mean.shape), dtype=bool)
    return np.stack([(mean >= low) & (mean <= high) for low, high in np.nanquantile(mean, (MIDDLE, BRIGHT))])


def told_apart(value: float, *limits: float, digits: int) -> list[str]:
    """Return a value and its limits as text, rounded to ``digits`` or as many more as tell it from each limit."""
    for more in range(digits, digits + 6):
        text, *others = [f"{number:.{more}f}" for number in (value, *limits)]
        if text not in others:
            break
    return [text, *others]


def _contrast(blocks: np.ndarray, regions: np.ndarray) -> float:
    """Return the difference of the regions' medians, which lesions hardly change; NaN without brain there."""
    middle, bright = (blocks[region & np.isfinite(blocks)] for region in regions)
    return float(np.median(bright) - np.median(middle)) if middle.size and bright.size else math.nan


def _distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).mean())


def _rounded(values: Any) -> tuple[float, ...]:
    return tuple(round(float(value), 5) for value in values)
