"""Findings of scored scans, how many are rare in health, and against drawn lesions on each scan's own grid.

brainuad score SCANS -o OUT [--lesion-mask LESIONS]
python benchmarks/findings.py OUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from brainuad.data.volume import Volume
from brainuad.evaluation import average_precision, best_dice, dice, find_lesions, match_lesions


def main() -> None:
    folder = Path(sys.argv[1])
    without_lesion = []
    for path in sorted(folder.rglob("*.json")):
        record = json.loads(path.read_text())
        if "findings" not in record:
            continue
        found = record["findings"]
        rare = sum(finding["rare"] is True for finding in found)
        if not record.get("lesion_mask"):
            without_lesion.append((len(found), sum(finding["ml"] for finding in found), rare))
            print(f"{record['name']}: findings {len(found)}, {without_lesion[-1][1]:.1f} mL, rare {rare}")
            continue
        anomaly, findings, brain = (
            Volume.load(path.parent / record["outputs"][kind]) for kind in ("anomaly", "lesions", "brain")
        )
        truth = Volume.load(record["lesion_mask"]).array > 0.5
        marked, inside = findings.array > 0, brain.array > 0
        voxel_ml = float(np.prod(anomaly.spacing) / 1000)
        match = match_lesions(marked, find_lesions(truth, voxel_ml=voxel_ml))
        touched = [int(truth[findings.array == number].any()) for number in range(1, len(found) + 1)]
        print(f"{record['name']}: threshold at {record['settings']['fpr']:g} of healthy brain")
        print(f"  lesions {truth.sum() * voxel_ml:.1f} mL, {truth[inside].mean():.4f} of the brain")
        print(f"  findings {len(touched)}, {marked.sum() * voxel_ml:.1f} mL, {marked[inside].mean():.4f} of the brain")
        print(f"  findings that touch a lesion {sum(touched)}, among the first five {sum(touched[:5])}")
        print(f"  rare findings {rare}, of which touch a lesion {sum(touched[:rare])}")
        print(
            f"  Dice {dice(marked, truth):.3f}, best Dice at any threshold {best_dice(anomaly.array, truth)[0]:.3f}, "
            f"average precision {average_precision(anomaly.array[inside], truth[inside]):.3f}"
        )
        for name, counts in {"all": match.counts, **match.by_size()}.items():
            if counts.lesions:
                print(f"  lesions {name}: {counts.found} of {counts.lesions} found (a tenth of the lesion or more)")
    if without_lesion:
        count, ml, rare = np.median(without_lesion, axis=0)
        none = sum(rare == 0 for _, _, rare in without_lesion)
        print(f"median: findings {count:g}, {ml:.1f} mL, rare {rare:g}")
        print(f"scans without a rare finding: {none} of {len(without_lesion)}")


if __name__ == "__main__":
    main()
