"""Healthy scans set against each other: what a model needs for scores relative to health, and their thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor, from_numpy

from brainuad.calibration.healthy import HealthyScan
from brainuad.evaluation import scan_score
from brainuad.scoring import postprocess
from brainuad.scoring.health import CARRIED, HealthyMoments, HealthyStatistics
from brainuad.scoring.names import base_of, bases_of, relative_name
from brainuad.scoring.rarity import RARITY, Ensemble, Part, pooled_tail, rarity, tail_quantiles

NOTHING = Ensemble(())


def set_against_health(
    scans: Sequence[HealthyScan], subjects: Sequence[str], ensemble: Ensemble = NOTHING
) -> tuple[HealthyMoments | None, list[HealthyScan]]:
    """Learn what healthy maps are like at each voxel, and add to each scan its scores relative to the others.

    A scan is compared with those of other subjects only, for a user's scan is not among the healthy scans either.

    Args:
        scans: The scans, all with the same ``maps``.
        subjects: Who each is of.
        ensemble: What the score "rarity" fuses.

    Returns:
        The moments over all scans and the scans with their further scores; None and the scans as they are where
        somebody would be compared with fewer than two scans.
    """
    others = [sum(other != subject for other in subjects) for subject in subjects]
    if min(others, default=0) < 2:
        return None, list(scans)
    names = [name for name in scans[0].maps.values if name in CARRIED]
    statistics = HealthyStatistics(names, scans[0].maps.mask.shape)
    for scan in scans:
        statistics.add(scan.maps.maps(), scan.maps.mask)
    found = []
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
        found.append(replace(scan, tails=tails, scores=scores, final=scan.final.and_of(finals)))
    health = statistics.carried()
    if in_brains:
        reached = {
            part: np.stack([tail_quantiles(values) for values in cleaned]) for part, cleaned in in_brains.items()
        }
        found = _with_rarity(found, subjects, ensemble, in_brains, reached)
        voxels = [scan.voxels for scan in scans]
        health = replace(health, tails={str(part): pooled_tail(own, voxels) for part, own in reached.items()})
    return health, found


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
    found = []
    for index, (scan, subject) in enumerate(zip(scans, subjects, strict=True)):
        others = [place for place, whose in enumerate(subjects) if whose != subject]
        voxels = [scans[place].voxels for place in others]
        rarities = [
            rarity(from_numpy(cleaned[index]), pooled_tail(reached[part][others], voxels))
            for part, cleaned in parts.items()
        ]
        map = np.zeros(scan.maps.mask.shape, dtype=np.float32)
        map[scan.maps.mask] = ensemble.fuse(rarities).numpy()
        found.append(
            replace(
                scan,
                tails={**scan.tails, RARITY: tail_quantiles(map[scan.maps.mask])},
                scores={**scan.scores, RARITY: scan_score(map, scan.maps.mask)},
                final=scan.final.and_of({RARITY: map}),
            )
        )
    return found
