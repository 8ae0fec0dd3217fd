"""Healthy scans set against each other: what a model needs for scores relative to health, and their thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from brainuad.calibration.healthy import BrainMaps, HealthyScan
from brainuad.calibration.pooling import tail_quantiles
from brainuad.evaluation import scan_score
from brainuad.scoring import postprocess
from brainuad.scoring.atlas import HealthyMoments, HealthyStatistics, relative_name


def set_against_health(
    scans: Sequence[HealthyScan], subjects: Sequence[str]
) -> tuple[HealthyMoments | None, list[HealthyScan]]:
    """Learn what healthy maps are like at each voxel, and add to each scan its scores relative to the others.

    A scan is compared with those of other subjects only, for a user's scan is not among the healthy scans either.

    Args:
        scans: The scans, all with the same ``maps``.
        subjects: Who each is of.

    Returns:
        The moments over all scans and the scans with their further scores; None and the scans as they are where
        somebody would be compared with fewer than two scans.
    """
    others = [sum(other != subject for other in subjects) for subject in subjects]
    if min(others, default=0) < 2:
        return None, list(scans)
    names = list(scans[0].maps.values)
    statistics = HealthyStatistics(names, scans[0].maps.mask.shape)
    for scan in scans:
        statistics.add(scan.maps.maps(), scan.maps.mask)
    found = []
    for scan, subject in zip(scans, subjects, strict=True):
        own = [other.maps for other, whose in zip(scans, subjects, strict=True) if whose == subject]
        mask, tails, scores = scan.maps.mask, dict(scan.tails), dict(scan.scores)
        finals = {}
        for base in names:
            without = [(maps.map(base), maps.mask) for maps in own]
            relative = statistics.score(relative_name(base), scan.maps.map(base), mask, without)
            final = postprocess(relative, mask).numpy()
            tails[relative_name(base)] = tail_quantiles(final[mask])
            scores[relative_name(base)] = scan_score(final, mask)
            finals[relative_name(base)] = final
        values = {**scan.final.values, **BrainMaps.of(finals, mask).values}
        found.append(replace(scan, tails=tails, scores=scores, final=BrainMaps(mask, values)))
    return statistics.carried(), found
