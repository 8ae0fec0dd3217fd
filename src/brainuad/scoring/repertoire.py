"""The scores that a model can give, and what it must make for them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from brainuad.errors import InputError
from brainuad.registry import SCORES
from brainuad.scoring.health import HealthyMoments
from brainuad.scoring.names import IMAGE, OWN_MAP, base_of, bases_of
from brainuad.scoring.rarity import RARITY, Ensemble
from brainuad.scoring.scores import OF_THE_IMAGE, SECOND

SCORE = "ssim_ensemble"
PAPER = "paper"  # the name that a user may give


@dataclass(frozen=True)
class Repertoire:
    """The scores that a model can give.

    Attributes:
        name: Name of the model, for errors.
        reconstructs: Whether it makes a reconstruction.
        has_map: Whether it makes an anomaly map of its own.
        has_second: Whether it makes a second reconstruction.
        ensemble: What its score "rarity" fuses.
        health: Its healthy statistics, or None.
    """

    name: str
    reconstructs: bool
    has_map: bool
    has_second: bool
    ensemble: Ensemble
    health: HealthyMoments | None

    def draws(self, names: Iterable[str]) -> int:
        """Return the number of independent reconstructions that the scores need: the largest number of any score.

        Raises:
            InputError: A score is unknown.
        """
        bases = (base for name in names for base in bases_of(name, self.ensemble.parts))
        return max((draws_of(base) for base in bases), default=1)

    def needs_second(self, names: Iterable[str]) -> bool:
        """Whether one of the scores needs the second reconstruction.

        Raises:
            InputError: A score is unknown.
        """
        return any(base.startswith(SECOND) for name in names for base in bases_of(name, self.ensemble.parts))

    @property
    def plain(self) -> list[str]:
        """Every score that needs no healthy statistics."""
        named = [name for name in SCORES if self.reconstructs or name in OF_THE_IMAGE]
        return [*named, OWN_MAP] if self.has_map else named

    @property
    def default(self) -> str:
        """The score that is used if the user names none.

        It is the model's own map where it makes one; else ``rarity``, which was best on real validation scans; without
        calibration, the paper's SSIM ensemble.
        """
        if self.has_map:
            return OWN_MAP
        return RARITY if self.health is not None and self.health.has_rarity(self.ensemble.parts) else SCORE

    def called(self, name: str | None) -> str:
        """Return the score with a name from the user: the default for None, the SSIM ensemble for "paper"."""
        return SCORE if name == PAPER else name or self.default

    def check(self, name: str) -> None:
        """Check that a score can be computed with this model.

        Raises:
            InputError: The score is unknown, or needs a reconstruction, map or healthy statistics that the model lacks.
        """
        self.check_made(name)
        base = base_of(name)
        if name == RARITY and not self.require_health(name).has_rarity(self.ensemble.parts):
            fault = f"was not measured on the healthy scans that {self.name} was calibrated on"
            raise InputError(name, fault, "Calibrate it again: brainuad calibrate MODEL HEALTHY... -o DIR")
        if base is not None:
            self.require_health(name).check(base)

    def check_made(self, name: str) -> None:
        """Check that the model makes the reconstruction or map that a score needs.

        Raises:
            InputError: The score is unknown, or needs a reconstruction or a map that the model does not make.
        """
        if self.makes(name):
            return
        has = "a reconstruction and no map of its own" if self.reconstructs else "a map and no reconstruction"
        if name.startswith(SECOND):
            has = "no second reconstruction"
        known = f"Choose one of {', '.join(self.plain)}"
        raise InputError(name, f"cannot be computed: {self.name} makes {has}", known)

    def makes(self, name: str) -> bool:
        """Whether the model makes the reconstruction or map that a score needs.

        Raises:
            InputError: The score is unknown.
        """
        return all(self._makes_map(base) for base in bases_of(name, self.ensemble.parts))

    def _makes_map(self, base: str) -> bool:
        if base.startswith(SECOND):
            return self.has_second
        if base == OWN_MAP:
            return self.has_map
        return self.reconstructs or base in (IMAGE, *OF_THE_IMAGE)

    def require_health(self, name: str) -> HealthyMoments:
        """Return the healthy statistics, which a score needs.

        Raises:
            InputError: There are none.
        """
        if self.health is None:
            remedy = "Calibrate it with three or more: brainuad calibrate MODEL HEALTHY... -o DIR"
            raise InputError(name, f"needs healthy scans to compare with; {self.name} is not calibrated on any", remedy)
        return self.health


def draws_of(name: str) -> int:
    """Return the number of independent reconstructions for a score that is not relative to health."""
    return SCORES.draws.get(name, 1)
