"""Real scans with painted lesions, and what is asked of their evaluation."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from brainuad.data.cohort import Case
from brainuad.data.loading import load_case
from brainuad.detector import Detector
from brainuad.models.base import Inference
from brainuad.scoring import postprocess
from brainuad.study import case_seed

SCORES = ("ssim_ensemble", "l1")


def repaint(case: Case, number: int) -> None:
    """Make a scan unlike the others: another contrast, and a bright lesion somewhere else."""
    image, mask = nib.load(case.image), nib.load(case.mask)
    brain = mask.get_fdata() > 0
    values = (image.get_fdata() / 255) ** (0.8 + 0.1 * number)
    if case.lesion is not None:
        rng = np.random.default_rng(number)
        centre = np.argwhere(brain)[rng.integers(brain.sum())]
        lesion = brain & (np.linalg.norm(np.indices(brain.shape).T - centre, axis=-1).T < 5)
        values[lesion] = rng.uniform(0.8, 1.5, lesion.sum())
        nib.save(nib.Nifti1Image(lesion.astype(np.uint8), image.affine), case.lesion)
    nib.save(nib.Nifti1Image((255 * values).astype(np.float32), image.affine), case.image)


def healthy_cases(cases: list[Case], folder: Path) -> list[Case]:
    """Four healthy validation scans, alike but for their contrast, and the patients of MSLUB."""
    (source,) = (case for case in cases if case.dataset == "IXI" and case.split == "val")
    image, mask = nib.load(source.image), nib.load(source.mask)
    found = []
    for number in range(4):
        values = (image.get_fdata() / 255) ** (0.9 + 0.1 * number)
        path = folder / f"healthy{number}.nii.gz"
        nib.save(nib.Nifti1Image((255 * values).astype(np.float32), mask.affine), path)
        found.append(Case(**{**vars(source), "image": path, "subject": f"healthy{number}"}))
    return found + [case for case in cases if case.dataset == "MSLUB"]


def map_of(detector: Detector, case: Case, score: str) -> tuple[torch.Tensor, Any]:
    prepared = load_case(case, detector.data_config)
    stack = detector.reconstruct(prepared.image, case_seed(0, case)).half().float()  # as the cache has it
    maps = detector.compare(prepared.image, Inference(stack, None), prepared.mask, (score,))
    return postprocess(maps[score], prepared.mask), prepared


def count_work(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The scores that are computed, a case an entry."""
    calls: list[tuple[str, ...]] = []
    original = Detector.compare

    def counted(self: Detector, image: Any, found: Any, mask: Any, names: Any, relate: Any = None) -> Any:
        calls.append(tuple(names))
        return original(self, image, found, mask, names, relate)

    monkeypatch.setattr(Detector, "compare", counted)
    return calls


def written(folder: Path) -> Counter[str]:
    """How often each measurement is in the progress of an evaluation; lines that are cut off hold none."""
    times: Counter[str] = Counter()
    for path in folder.glob("progress*.jsonl"):
        for line in path.read_text().splitlines():
            with suppress(ValueError):
                times[json.loads(line)["key"]] += 1
    return times
