"""Turn a trained model into a shipped one: 16-bit weights, and thresholds from healthy validation scans.

    python benchmarks/package_model.py RUN/model COHORTS/scans/manifest.csv -o src/brainuad/assets/models/lite-t1

The manifest's healthy scans of the validation split calibrate the model: for every score, the map values that 10, 5,
1 and 0.1 % of healthy brain voxels exceed, after post-processing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from brainuad.data.cohort import manifest_cases
from brainuad.data.loading import load_case
from brainuad.detector import Detector
from brainuad.evaluate import case_seed
from brainuad.evaluation import false_positive_thresholds
from brainuad.registry import SCORES
from brainuad.scoring import postprocess


def main() -> None:
    """Calibrate and write the model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--noise-ensemble", action="store_true", help="reconstruct at several noise levels")
    parser.add_argument("--note", action="append", default=[], help="KEY=VALUE for the model's provenance")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # one volume at a time: a second thread costs more than it brings
    detector = Detector.load(arguments.model)
    detector.model.half().float()  # calibrate the weights that are shipped
    if arguments.noise_ensemble:
        detector = detector.with_settings(noise_ensemble=True)
    cases = [
        case for case in manifest_cases(arguments.manifest) if case.split == "val" and case.lesion is None
    ]
    maps: dict[str, list[np.ndarray]] = {name: [] for name in SCORES}
    masks = []
    for case in cases:
        prepared = load_case(case, detector.data_config)
        found = detector.score_maps(prepared.image, prepared.mask, SCORES, case_seed(0, case))
        for name, anomaly in found.items():
            maps[name].append(postprocess(anomaly, prepared.mask).numpy())
        masks.append(prepared.mask)
        print(case.subject, flush=True)
    detector.calibration = {
        "scans": len(cases),
        "voxels": int(sum(mask.sum() for mask in masks)),
        "postprocess": True,
        "seed": 0,
        "thresholds": {
            name: {
                f"{fraction:g}": value for fraction, value in false_positive_thresholds(stack, masks).items()
            }
            for name, stack in maps.items()
        },
    }
    detector.provenance |= dict(note.split("=", 1) for note in arguments.note)
    detector.save(arguments.output, half=True)
    print(json.dumps(detector.calibration["thresholds"], indent=1))


if __name__ == "__main__":
    main()
