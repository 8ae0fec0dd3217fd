"""Compare noise levels of reconstruction on validation scans: mean average precision of each score.

    python benchmarks/choose_noise_level.py MODEL COHORTS/scans/manifest.csv

Only the validation split is read. Levels are 1-based, as in ``model.cfg.test_timesteps``.
"""

from __future__ import annotations

import sys
from collections import defaultdict

import numpy as np
import torch

from brainuad.data.cohort import manifest_cases
from brainuad.data.loading import load_case
from brainuad.detector import SCORE, Detector, load_model
from brainuad.evaluate import case_seed
from brainuad.evaluation import average_precision, summarise
from brainuad.scoring import postprocess

SCORES = ("intensity_dark", "l1", "ssim_0.3", SCORE, "l1_ssim")
SETTINGS = {
    "t = 150": {"test_timesteps": 150},
    "t = 250": {"test_timesteps": 250},
    "t = 350": {"test_timesteps": 350},
    "t = 500 (paper)": {"test_timesteps": 500},
    "t = 500, 4 draws": {"test_timesteps": 500, "noise_draws": 4},
    "t = 750": {"test_timesteps": 750},
    "t in {250, 500, 750} (paper)": {"noise_ensemble": True, "step_ensemble": (250, 500, 750)},
    "t in {600, 700, 800}": {"noise_ensemble": True, "step_ensemble": (600, 700, 800)},
}


def main() -> None:
    """Print one row a setting."""
    torch.set_num_threads(1)
    detector = load_model(sys.argv[1], "cpu")
    cases = [c for c in manifest_cases(sys.argv[2]) if c.split == "val" and c.lesion is not None]
    print(
        f"mean average precision over {len(cases)} validation scans (semi-synthetic strokes), 95 % intervals\n"
    )
    print(f"| noise level | {' | '.join(SCORES)} |\n|---|{'---|' * len(SCORES)}")
    for name, changes in SETTINGS.items():
        changes = {"noise_ensemble": False, **changes}
        found = precisions(detector.with_settings(**changes), cases)
        summaries = [summarise(found[score]) for score in SCORES]
        cells = [f"{s.mean:.3f} ({s.low:.3f} to {s.high:.3f})" for s in summaries]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def precisions(detector: Detector, cases: list) -> dict[str, np.ndarray]:
    """Return every score's average precision a case, over brain voxels after post-processing."""
    found = defaultdict(list)
    for case in cases:
        prepared = load_case(case, detector.data_config)
        maps = detector.score_maps(prepared.image, prepared.mask, SCORES, case_seed(0, case))
        for name, anomaly in maps.items():
            final = postprocess(anomaly, prepared.mask).numpy()
            found[name].append(average_precision(final[prepared.mask], prepared.lesion[prepared.mask]))
    return {name: np.array(values) for name, values in found.items()}


if __name__ == "__main__":
    main()
