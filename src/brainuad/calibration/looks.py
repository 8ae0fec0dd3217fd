"""What healthy scans look like to a model, and in what way another scan looks different."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

from brainuad.calibration._values import numbers
from brainuad.data.atlas import POOR_ALIGNMENT

LEVELS = np.linspace(0, 1, 51)  # of the quantile function of intensities
BLOCKS = 24  # blocks along the longest axis of the grid, about 8 mm
ONE_IN = 1000  # healthy scans that are to be warned about, for each reason
_ENOUGH = 5  # scans to say from how much they differ


@dataclass(frozen=True, eq=False)
class Look:
    """What one scan looks like.

    Attributes:
        quantiles: Quantiles at ``LEVELS`` of the intensities in the brain.
        blocks: Mean intensity of the brain by block of the grid, NaN where less than half of it is brain.
        brain_ml: Volume of the brain in the scan; None where it is unknown.
        alignment: Correlation of the registered scan with the atlas; None where it is unknown.
    """

    quantiles: np.ndarray
    blocks: np.ndarray
    brain_ml: float | None = None
    alignment: float | None = None


def look_at(image: Any, mask: Any, brain_ml: float | None = None, alignment: float | None = None) -> Look:
    """Return what a scan looks like.

    Args:
        image: ``(X, Y, Z)`` on the model's grid, the brain in [0, 1].
        mask: ``(X, Y, Z)`` brain mask, not empty.
        brain_ml: Volume of the brain in the scan, in mL.
        alignment: Correlation of the registered scan with the atlas.
    """
    values, inside = np.asarray(image, dtype=np.float64), np.asarray(mask, dtype=bool)
    size = -(-max(values.shape) // BLOCKS)
    share = _block_means(inside, size)
    total = _block_means(np.where(inside, values, 0), size)
    blocks = np.divide(total, share, out=np.full(share.shape, np.nan), where=share >= 0.5)
    return Look(np.quantile(values[inside], LEVELS), blocks, brain_ml, alignment)


@dataclass(frozen=True)
class Looks:
    """What healthy scans look like. Everything may be empty: unknown.

    Attributes:
        quantiles: Mean over scans of the quantiles at ``LEVELS`` of the intensities in the brain.
        distances: For each scan, the mean absolute difference of its quantiles from the other scans' mean, which is
            the 1-Wasserstein distance of the distributions; sorted.
        mean_shape: Shape of ``mean_image``.
        mean_image: Mean over scans of the intensity by block of the grid, as base64 of bytes in C order: 0 is not
            brain, 1 to 255 are intensities from 0 to 1.
        resemblances: For each scan, the correlation over blocks with the mean of the other scans; sorted.
        brain_ml: Volumes of the brains in mL, sorted.
        alignment: Correlations with the atlas, sorted.
    """

    quantiles: tuple[float, ...] = ()
    distances: tuple[float, ...] = ()
    mean_shape: tuple[float, ...] = ()
    mean_image: str = ""
    resemblances: tuple[float, ...] = ()
    brain_ml: tuple[float, ...] = ()
    alignment: tuple[float, ...] = ()

    @classmethod
    def of(cls, looks: Sequence[Look]) -> Looks:
        """Return what several scans, at least two, look like.

        Raises:
            ValueError: There are fewer, or the grids differ.
        """
        if len(looks) < 2:
            raise ValueError(f"{len(looks)} scan cannot be compared with others")
        quantiles = np.stack([look.quantiles for look in looks])
        blocks = np.stack([look.blocks for look in looks])
        others = [np.delete(np.arange(len(looks)), i) for i in range(len(looks))]
        mean = _mean_blocks(blocks)
        return cls(
            _rounded(quantiles.mean(0)),
            _rounded(sorted(_distance(quantiles[i], quantiles[o].mean(0)) for i, o in enumerate(others))),
            mean.shape,
            _packed(mean),
            _rounded(sorted(_correlation(blocks[i], _mean_blocks(blocks[o])) for i, o in enumerate(others))),
            _rounded(sorted(look.brain_ml for look in looks if look.brain_ml is not None)),
            _rounded(sorted(look.alignment for look in looks if look.alignment is not None)),
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Looks:
        """Read what `to_dict` gave.

        Raises:
            ValueError: An entry is missing or cannot be used.
        """
        lists = {name: numbers(values, name) for name in vars(cls()) if name != "mean_image"}
        found = cls(**lists, mean_image=str(values.get("mean_image", "")))
        if found.quantiles and len(found.quantiles) != len(LEVELS):
            raise ValueError(f"has {len(found.quantiles)} quantiles of intensity, not {len(LEVELS)}")
        found.mean_blocks()
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()
        }

    def mean_blocks(self) -> np.ndarray | None:
        """Return the mean intensity by block, NaN where there is no brain; None if it is unknown.

        Raises:
            ValueError: What is stored has not the size that it says.
        """
        if not self.mean_image:
            return None
        try:
            stored = np.frombuffer(base64.b64decode(self.mean_image, validate=True), dtype=np.uint8)
            stored = stored.reshape([int(size) for size in self.mean_shape])
        except (binascii.Error, ValueError) as error:
            raise ValueError("has a damaged mean image") from error
        return np.where(stored > 0, (stored - 1.0) / 254, np.nan)

    def doubts(self, look: Look) -> list[str]:
        """Say in what way a scan looks different from the healthy scans."""
        found = []
        mean = self.mean_blocks()
        if mean is not None and mean.shape == look.blocks.shape:
            resemblance = _correlation(look.blocks, mean)
            if resemblance < 0.5:
                found.append(
                    f"the contrast is not that of the healthy scans (correlation {resemblance:.2f}): "
                    "is it another kind of scan than the model's?"
                )
        if self.quantiles:
            distance = _distance(look.quantiles, np.asarray(self.quantiles))
            limit = np.exp(_limit(np.log(self.distances), "above"))
            if distance > limit:
                found.append(
                    f"intensities differ from the healthy scans' by {distance:.3f} (they differ by up to {limit:.3f}): "
                    "another scanner or sequence? Thresholds may not hold; calibrate on healthy scans like it"
                )
        if look.brain_ml is not None:
            low, high = _limit(self.brain_ml, "below"), _limit(self.brain_ml, "above")
            if not low <= look.brain_ml <= high:
                found.append(
                    f"brain volume {look.brain_ml:.0f} mL is outside {low:.0f} to {high:.0f} mL, the range of the "
                    "healthy scans: look at the brain mask"
                )
        if look.alignment is not None:
            low = _limit(self.alignment, "below") if len(self.alignment) >= _ENOUGH else POOR_ALIGNMENT
            if look.alignment < low:
                found.append(
                    f"registration may have failed: correlation {look.alignment:.2f} with the atlas, "
                    f"healthy scans have {low:.2f} or more"
                )
        return found


def _limit(values: Sequence[float] | np.ndarray, side: str) -> float:
    """Return the end of the prediction interval that one in ``ONE_IN`` further normal values lies beyond."""
    if len(values) < _ENOUGH:
        return np.inf if side == "above" else -np.inf
    n, spread = len(values), float(np.std(values, ddof=1))
    reach = float(stdtrit(n - 1, 1 - 1 / ONE_IN)) * spread * np.sqrt(1 + 1 / n)
    return float(np.mean(values) + (reach if side == "above" else -reach))


def _block_means(array: np.ndarray, size: int) -> np.ndarray:
    padded = np.pad(array.astype(np.float64), [(0, -length % size) for length in array.shape])
    x, y, z = (length // size for length in padded.shape)
    return padded.reshape(x, size, y, size, z, size).mean((1, 3, 5))


def _mean_blocks(blocks: np.ndarray) -> np.ndarray:
    known = np.isfinite(blocks)
    count = known.sum(0)
    total = np.where(known, blocks, 0).sum(0)
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count * 2 >= len(blocks))


def _packed(mean: np.ndarray) -> str:
    stored = np.where(np.isfinite(mean), 1 + np.rint(254 * np.clip(np.nan_to_num(mean), 0, 1)), 0)
    return base64.b64encode(stored.astype(np.uint8).tobytes()).decode()


def _distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).mean())


def _correlation(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return Pearson's correlation where both are known; 0 where that is nowhere, or one of them is constant."""
    known = np.isfinite(ours) & np.isfinite(theirs)
    if known.sum() < 2 or min(np.ptp(ours[known]), np.ptp(theirs[known])) == 0:
        return 0.0
    return float(np.corrcoef(ours[known], theirs[known])[0, 1])


def _rounded(values: Any) -> tuple[float, ...]:
    return tuple(round(float(value), 5) for value in values)
