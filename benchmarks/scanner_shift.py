"""What calibration on one's own healthy scans does against a change of scanner.

    python benchmarks/scanner_shift.py IXI/t1 IXI/participants.csv -o OUT

Healthy test subjects, raw and with skull, are scored as they are and as another scanner might have taken them
(`another_scanner`). Thresholds for 1 % of healthy voxels then come from the model's own calibration, or from half of
the changed scans, and the fraction of voxels above is measured on the other half; then the halves change places, so
that every subject is measured once each way. Each scan goes through `brainuad.scan.map_scan` once; a rerun goes on
where the last one stopped. About 10 minutes of one core for 16 subjects, every second of whom is scored as he is, too.
"""

from __future__ import annotations

import argparse
import csv
import functools
import zlib
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

from brainuad.calibration import Calibration, HealthyScan, calibration_of, set_against_health, tail_quantiles
from brainuad.data.volume import Volume
from brainuad.detector import Detector, load_model
from brainuad.evaluation import summarise
from brainuad.files import atomic_path, write_json
from brainuad.scan import map_scan
from brainuad.scoring import postprocess
from brainuad.scoring.health import MOMENT_MAPS, HealthyMoments
from brainuad.scoring.names import IMAGE, OWN_MAP, base_of
from brainuad.scoring.rarity import TAIL

SCORES = ("ssim_ensemble", "l1", "l1_ssim_z")
MAPPED = [name for name in MOMENT_MAPS if name not in (IMAGE, OWN_MAP)]
Known = tuple[HealthyMoments, Calibration]
FRACTIONS = (0.05, 0.01, 0.001)
GAMMA = 1.4  # tissue contrast
SIGMA_MM = 1.0  # Gaussian blur, on top of 2 mm voxels
BIAS = 0.4  # half the range of the logarithm of the receive field
NOISE = 0.05  # standard deviation in either channel, of the scan's bright end


def another_scanner(scan: Volume, seed: int) -> Volume:
    """Return a scan as another scanner might have taken it: contrast, blur, receive field, Rician noise.

    Args:
        scan: Skull on.
        seed: Of the noise; the rest is the same for every scan.
    """
    bright = np.percentile(scan.array, 99.5)
    image = np.clip(scan.array / bright, 0, None) ** GAMMA
    image = ndimage.gaussian_filter(image, [SIGMA_MM / step for step in scan.spacing])
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, length) for length in image.shape), indexing="ij")
    image *= np.exp(BIAS * np.sin(1.2 * x + 1.7 * y - 1.4 * z))
    rng = np.random.default_rng(seed)
    real, imaginary = NOISE * rng.standard_normal((2, *image.shape))
    return scan.with_array((bright * np.hypot(image + real, imaginary)).astype(np.float32))


def summary(scan: Volume, detector: Detector, kept: Path) -> HealthyScan:
    """Return what a calibration needs to know of a scan, from an earlier run if it was there."""
    if not kept.exists():
        placed, maps, _ = map_scan(scan, detector, scores=MAPPED)
        measured = (placed.image, placed.mask, placed.brain.ml, placed.alignment)
        made = HealthyScan.of(maps.final, maps.raw, *measured)
        with atomic_path(kept) as temporary:
            np.savez_compressed(temporary, **made.to_arrays())
    with np.load(kept, allow_pickle=False) as stored:
        return HealthyScan.from_arrays(stored)


def fractions_above(scans: list[HealthyScan], known: Known, score: str, fraction: float) -> list[float]:
    """Return the fraction of each brain's voxels above the threshold, to 1.2 % of itself."""
    health, calibration = known
    threshold = calibration.threshold(score, fraction)
    return [float(np.interp(threshold, tail(scan, health, score), TAIL)) for scan in scans]


@functools.cache
def tail(scan: HealthyScan, health: HealthyMoments, score: str) -> np.ndarray:
    """Return the tail quantiles of a scan's map; of a score relative to health, relative to the given one."""
    base = base_of(score)
    if base is None:
        return scan.tails[score]
    mask = scan.maps.mask
    return tail_quantiles(postprocess(health.score(score, scan.maps.map(base), mask), mask).numpy()[mask])


def known_from(scans: list[HealthyScan], subjects: list[str]) -> Known:
    """Calibrate on scans."""
    health, related = set_against_health(scans, subjects)
    assert health is not None
    return health, calibration_of(related, subjects)


def warned(scans: list[HealthyScan], calibration: Calibration) -> int:
    """Return how many scans the calibration finds to look different."""
    return sum(bool(calibration.appearance.warnings(scan.appearance)) for scan in scans)


def main() -> None:
    """Score, calibrate, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", type=Path, help="folder of raw scans")
    parser.add_argument("participants", type=Path, help="CSV with participant_id and split_fold0")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--model", default="lite-t1")
    parser.add_argument("--subjects", type=int, default=16)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    detector = load_model(arguments.model, "cpu")
    kept = arguments.output / detector.fingerprint
    with arguments.participants.open() as handle:
        subjects = [row["participant_id"] for row in csv.DictReader(handle) if row["split_fold0"] == "test"]
    subjects = subjects[: arguments.subjects]
    scans = {subject: Volume.load(next(arguments.scans.glob(f"{subject}*"))) for subject in subjects}
    changed = [
        summary(another_scanner(scan, zlib.crc32(subject.encode())), detector, kept / f"{subject}_changed.npz")
        for subject, scan in scans.items()
    ]
    same = [summary(scans[subject], detector, kept / f"{subject}_same.npz") for subject in subjects[::2]]
    halves = [range(0, len(subjects), 2), range(1, len(subjects), 2)]
    own = [known_from([changed[i] for i in half], [subjects[i] for i in half]) for half in halves]
    assert detector.calibration is not None
    assert detector.health is not None
    shipped = detector.health, detector.calibration
    rows = []
    for score in SCORES:
        for fraction in FRACTIONS:
            measured = {
                "as they are, the model's calibration": fractions_above(same, shipped, score, fraction),
                "other scanner, the model's calibration": fractions_above(changed, shipped, score, fraction),
                "other scanner, calibrated on the other half": crossed(changed, own, halves, score, fraction),
            }
            for what, values in measured.items():
                found = summarise(values)
                row = {"score": score, "expected": fraction, "scans": what, "n": found.n}
                figures = {"mean": found.mean, "low": found.low, "high": found.high}
                figures |= {"least": min(values), "most": max(values)}
                rows.append(row | {name: round(value, 5) for name, value in figures.items()})
                print(*rows[-1].values(), sep="\t")
    warnings = {
        "calibrated on the other half": sum(warned([changed[i] for i in halves[1 - k]], own[k][1]) for k in (0, 1))
    }
    if detector.calibration.appearance.distances:
        warnings["the model's calibration"] = warned(changed, detector.calibration)
        warnings["the model's calibration, as they are"] = warned(same, detector.calibration)
    print("scans warned about:", warnings)
    write_json(arguments.output / "scanner_shift.json", {"subjects": subjects, "rows": rows, "warned": warnings})


def crossed(
    scans: list[HealthyScan], own: list[Known], halves: list[range], score: str, fraction: float
) -> list[float]:
    """Return the fraction above in each scan at the threshold from the half that it is not in, in order."""
    values = np.empty(len(scans))
    for half, known in zip(halves, reversed(own), strict=True):
        values[half] = fractions_above([scans[i] for i in half], known, score, fraction)
    return values.tolist()


if __name__ == "__main__":
    main()
