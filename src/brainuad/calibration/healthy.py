"""Summarise healthy scans one by one, set them against each other, and compute a calibration from the summaries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor, from_numpy

from brainuad._version import __version__
from brainuad.calibration.appearance import Appearance, HealthyAppearance, appearance_of
from brainuad.calibration.figures import Calibration
from brainuad.calibration.findings import HealthyFindings, measure_findings
from brainuad.calibration.pooling import pooled_thresholds
from brainuad.evaluation import FALSE_POSITIVE_FRACTIONS, scan_score
from brainuad.scoring import postprocess
from brainuad.scoring.health import MOMENT_MAPS, HealthyMoments, HealthyStatistics
from brainuad.scoring.names import IMAGE, OWN_MAP, base_of, bases_of, relative_name
from brainuad.scoring.rarity import ENSEMBLES, OF_TWO, RARITY, Ensemble, Part, pooled_tail, rarity, tail_quantiles

STORED_TYPES = {OWN_MAP: np.float32}  # its range is arbitrary; 16 bits are enough for the others
NO_ENSEMBLE = Ensemble(())
USER_SCORES = ("ssim_ensemble", "l1", "l1_ssim", OWN_MAP)  # the scores of users, whose findings are kept
# maps of a scan, where the model makes them
_PARTS = [part for ensemble in (*ENSEMBLES.values(), *OF_TWO.values()) for part in ensemble.parts]
SUMMARY_MAPS = tuple(dict.fromkeys([*MOMENT_MAPS, *bases_of(RARITY, _PARTS)]))


@dataclass(frozen=True, eq=False)
class BrainMaps:
    """Maps of one scan, in the brain only.

    Attributes:
        mask: ``(X, Y, Z)`` bool brain mask.
        values: By map, ``(N,)`` of its N brain voxels: float16, the model's own map float32.
    """

    mask: np.ndarray
    values: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, maps: Mapping[str, Any], mask: np.ndarray) -> BrainMaps:
        """Select the brain's values of ``(X, Y, Z)`` maps."""
        inside = {name: np.asarray(map)[mask] for name, map in maps.items()}
        return cls(mask, {name: values.astype(STORED_TYPES.get(name, np.float16)) for name, values in inside.items()})

    def and_of(self, maps: Mapping[str, Any]) -> BrainMaps:
        """Return these maps and further ones, ``(X, Y, Z)`` each."""
        return BrainMaps(self.mask, {**self.values, **BrainMaps.of(maps, self.mask).values})

    def map(self, name: str) -> np.ndarray:
        """Return a map, ``(X, Y, Z)`` float32, 0 outside the brain."""
        full = np.zeros(self.mask.shape, dtype=np.float32)
        full[self.mask] = self.values[name]
        return full

    def maps(self) -> dict[str, np.ndarray]:
        """Return every map."""
        return {name: self.map(name) for name in self.values}


@dataclass(frozen=True, eq=False)
class HealthyScan:
    """Summary of one healthy scan for a calibration, some 4 MB.

    Attributes:
        tails: By score, `brainuad.scoring.rarity.tail_quantiles` of the map in the brain.
        scores: By score, the scan's score: the mean of the map over the brain.
        voxels: Brain voxels on the model's grid.
        appearance: Its appearance.
        maps: Raw maps, from which the healthy statistics are computed.
        final: By score, the post-processed map, to measure findings in; only for the scores of users.
    """

    tails: Mapping[str, np.ndarray]
    scores: Mapping[str, float]
    voxels: int
    appearance: Appearance
    maps: BrainMaps
    final: BrainMaps

    @classmethod
    def of(
        cls,
        maps: Mapping[str, Any],
        raw: Mapping[str, Any],
        image: Any,
        mask: np.ndarray,
        brain_ml: float | None = None,
        alignment: float | None = None,
    ) -> HealthyScan:
        """Summarise a scan.

        Args:
            maps: By score, ``(X, Y, Z)`` post-processed map on the model's grid.
            raw: Maps before post-processing: those of ``SUMMARY_MAPS`` that the model makes, without the image.
            image: ``(X, Y, Z)``, the brain in [0, 1].
            mask: ``(X, Y, Z)`` bool brain mask.
            brain_ml: Volume of the brain in the scan, in mL.
            alignment: Correlation of the registered scan with the atlas.
        """
        tails = {name: tail_quantiles(np.asarray(map)[mask]) for name, map in maps.items()}
        scores = {name: scan_score(map, mask) for name, map in maps.items()}
        known = {**raw, IMAGE: image}
        kept = {name: known[name] for name in SUMMARY_MAPS if name in known}
        appearance = appearance_of(image, mask, brain_ml, alignment)
        final = BrainMaps.of({name: maps[name] for name in USER_SCORES if name in maps}, mask)
        return cls(tails, scores, int(mask.sum()), appearance, BrainMaps.of(kept, mask), final)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return arrays for ``np.savez``."""
        measured = [
            np.nan if value is None else value for value in (self.appearance.brain_ml, self.appearance.alignment)
        ]
        return {
            "names": np.array(list(self.tails)),
            "tails": np.stack(list(self.tails.values())),
            "scores": np.array(list(self.scores.values())),
            "voxels": np.array(self.voxels),
            "quantiles": self.appearance.quantiles,
            "blocks": self.appearance.blocks,
            "detail": self.appearance.detail,
            "measured": np.array(measured),
            "shape": np.array(self.maps.mask.shape),
            "brain": np.packbits(self.maps.mask),
            "carried": np.array(list(self.maps.values)),
            "values": np.stack(list(self.maps.values.values())),
            "final_names": np.array(list(self.final.values), dtype=str),
            "final": np.array(list(self.final.values.values())),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> HealthyScan:
        """Return the summary of these arrays of `to_arrays`."""
        names = arrays["names"].tolist()
        shape = tuple(arrays["shape"].tolist())
        mask = np.unpackbits(arrays["brain"], count=int(np.prod(shape))).astype(bool).reshape(shape)
        maps, final = (
            BrainMaps(mask, dict(zip(arrays[names].tolist(), arrays[values], strict=True)))
            for names, values in (("carried", "values"), ("final_names", "final"))
        )
        brain_ml, alignment = (None if np.isnan(value) else float(value) for value in arrays["measured"])
        return cls(
            dict(zip(names, arrays["tails"], strict=True)),
            dict(zip(names, arrays["scores"].tolist(), strict=True)),
            int(arrays["voxels"]),
            Appearance(arrays["quantiles"], arrays["blocks"], brain_ml, alignment, arrays["detail"]),
            maps,
            final,
        )


def set_against_health(
    scans: Sequence[HealthyScan], subjects: Sequence[str], ensemble: Ensemble = NO_ENSEMBLE
) -> tuple[HealthyMoments | None, list[HealthyScan]]:
    """Estimate mean and deviation of healthy maps at each voxel, and add to each scan its scores relative to others.

    A scan is compared only with scans of other subjects, because a user's scan is not among the healthy scans either.

    Args:
        scans: The scans, all with the same ``maps``.
        subjects: Who each is of.
        ensemble: What the score "rarity" fuses.

    Returns:
        The moments over all scans, and the scans with their further scores; None and the unchanged scans if a subject
        has fewer than two scans of others to be compared with.
    """
    others = [sum(other != subject for other in subjects) for subject in subjects]
    if min(others, default=0) < 2:
        return None, list(scans)
    names = [name for name in scans[0].maps.values if name in MOMENT_MAPS]
    statistics = HealthyStatistics(names, scans[0].maps.mask.shape)
    for scan in scans:
        statistics.add(scan.maps.maps(), scan.maps.mask)
    compared = []
    has_rarity = set(bases_of(RARITY, ensemble.parts)) <= set(scans[0].maps.values)
    in_brains: dict[Part, list[np.ndarray]] = {part: [] for part in ensemble.parts if has_rarity}
    for scan, subject in zip(scans, subjects, strict=True):
        own = [other.maps for other, whose in zip(scans, subjects, strict=True) if whose == subject]
        mask, tails, scores = scan.maps.mask, dict(scan.tails), dict(scan.scores)
        relative: dict[str, Tensor] = {}
        finals: dict[str, np.ndarray] = {}
        for base in names:
            without = [(maps.map(base), maps.mask) for maps in own]
            name = relative_name(base)
            relative[name] = statistics.score(name, scan.maps.map(base), mask, without)
            finals[name] = postprocess(relative[name], mask).numpy()
            tails[name] = tail_quantiles(finals[name][mask])
            scores[name] = scan_score(finals[name], mask)
        for part, cleaned in in_brains.items():
            map = scan.maps.map(part.score) if base_of(part.score) is None else relative[part.score]
            cleaned.append(part.cleaned(map, mask).numpy()[mask])
        compared.append(replace(scan, tails=tails, scores=scores, final=scan.final.and_of(finals)))
    health = statistics.carried()
    if in_brains:
        reached = {
            part: np.stack([tail_quantiles(values) for values in cleaned]) for part, cleaned in in_brains.items()
        }
        compared = _with_rarity(compared, subjects, ensemble, in_brains, reached)
        voxels = [scan.voxels for scan in scans]
        health = replace(health, tails={str(part): pooled_tail(own, voxels) for part, own in reached.items()})
    return health, compared


def _with_rarity(
    scans: Sequence[HealthyScan],
    subjects: Sequence[str],
    ensemble: Ensemble,
    parts: dict[Part, list[np.ndarray]],
    reached: dict[Part, np.ndarray],
) -> list[HealthyScan]:
    """Return the scans with how rare in other subjects' brains their values are.

    ``parts`` has the values of each part in the brain of each scan, ``reached`` the `tail_quantiles` of these.
    """
    compared = []
    for index, (scan, subject) in enumerate(zip(scans, subjects, strict=True)):
        others = [place for place, whose in enumerate(subjects) if whose != subject]
        voxels = [scans[place].voxels for place in others]
        rarities = [
            rarity(from_numpy(cleaned[index]), pooled_tail(reached[part][others], voxels))
            for part, cleaned in parts.items()
        ]
        map = np.zeros(scan.maps.mask.shape, dtype=np.float32)
        map[scan.maps.mask] = ensemble.fuse(rarities).numpy()
        compared.append(
            replace(
                scan,
                tails={**scan.tails, RARITY: tail_quantiles(map[scan.maps.mask])},
                scores={**scan.scores, RARITY: scan_score(map, scan.maps.mask)},
                final=scan.final.and_of({RARITY: map}),
            )
        )
    return compared


def calibration_of(
    scans: Sequence[HealthyScan],
    subjects: Sequence[str],
    *,
    seed: int = 0,
    made_from: str = "raw scans",
    left_out: Sequence[str] = (),
) -> Calibration:
    """Return the calibration of at least two healthy scans.

    Args:
        scans: The scans, all with the same scores.
        subjects: Subject of each scan.
        seed: Seed of their reconstructions, and of the bootstrap.
        made_from: "raw scans" or "prepared scans".
        left_out: Names of scans that could not be used.

    Raises:
        ValueError: There is only one scan.
    """
    voxels = [scan.voxels for scan in scans]
    thresholds, intervals = {}, {}
    for name in scans[0].tails:
        tails = np.stack([scan.tails[name] for scan in scans])
        thresholds[name], intervals[name] = pooled_thresholds(
            tails, voxels, FALSE_POSITIVE_FRACTIONS, subjects=subjects, seed=seed
        )
    return Calibration(
        scans=len(scans),
        voxels=sum(voxels),
        thresholds=thresholds,
        seed=seed,
        brainuad=__version__,
        made_from=made_from,
        subjects=tuple(dict.fromkeys(subjects)),
        left_out=tuple(left_out),
        intervals=intervals,
        findings={
            name: {
                fraction: HealthyFindings.of(measure_findings(scan.final.map(name), threshold) for scan in scans)
                for fraction, threshold in thresholds[name].items()
            }
            for name in scans[0].final.values
        },
        scan_scores={name: tuple(sorted(scan.scores[name] for scan in scans)) for name in thresholds},
        appearance=HealthyAppearance.of([scan.appearance for scan in scans]),
    )
