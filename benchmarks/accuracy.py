"""Everything that docs/results.md says of a model on T1, made by one command.

    python benchmarks/accuracy.py MODEL DATA_DIR -o OUT

DATA_DIR is a manifest of what ``brainuad prepare --spacing 2 --bias-levels 1`` wrote, with the roles of
``benchmarks/roles``, for real patients (BraTS 2021, MSLUB), healthy scans of another scanner (ds002748) and IXI with
its parcellation; or the folder, which knows the paper's sets only. Lesions of four kinds are simulated in IXI's
validation and test scans. Then

- on *validation*: what raises average precision over the paper's preset (noise, scores, post-processing, ensembles),
  for real patients and, apart from them, for simulated lesions; where there are real patients, they decide;
- on *test*: every score, pathology and threshold, under the paper's preset and under the model's own settings, the
  ratio of the two, and what is left over plain intensities; the sweep over widths of SSIM; the pictures.

``OUT/tables`` has a Markdown fragment a table, ``OUT/figures`` the pictures. Real lesions come first, then healthy
scans, simulated ones last; they are never pooled: "all four" is the mean over the simulated kinds, of each subject
first.
What healthy scans have at a voxel, and thresholds, are of IXI's validation scans. Intervals are over subjects. A rerun
continues where the last one stopped; reconstructions come from brainuad's cache. Two threads at most.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import accuracy_tables as tables
import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from brainuad.cli.sweep import parse_sigmas
from brainuad.data.cohort import HEALTHY_SET, Case, manifest_cases, read_cases
from brainuad.data.leaks import leak_free
from brainuad.data.loading import PreparedCase, content_key
from brainuad.detector import Detector, load_model
from brainuad.errors import InputError
from brainuad.evaluation import average_precision
from brainuad.files import atomic_path, key_of
from brainuad.models.base import Inference
from brainuad.scoring import drop_small, erode_brain, median_filter, postprocess
from brainuad.scoring.ensembles import ENSEMBLES
from brainuad.simulate import KINDS, Simulation, shipped_outlines, simulate_cohort
from brainuad.study import OURS, CachedInference, Scorer, evaluate_cases
from brainuad.study.figures import file_name
from brainuad.study.progress import Progress
from brainuad.study.sweep import run_sweep

PAPER = {"noise_ensemble": False, "test_timesteps": 500, "noise_draws": 1}
PLAIN = ("ssim_ensemble", "l1", "l1_ssim", "ssim_0.3", "ssim_0.7", "ssim_1.3")
SCORES = (*PLAIN, *(f"{name}_z" for name in PLAIN))
TESTED = tuple(  # the sweep has all widths
    name for name in SCORES if not name.startswith(("ssim_0.7", "ssim_1.3"))
)
SIMULATED = {f"simulated {kind}": kind for kind in KINDS}
REAL = "real"
# What reconstructions are averaged: (noise level, draw). The first is the paper's.
NOISES = {"t = 500, 1 draw": [(500, 0)], "t = 500, 4 draws": [(500, draw) for draw in range(4)]} | {
    f"t in {{{', '.join(map(str, levels))}}}": [(level, 0) for level in levels]
    for levels in ((600, 700, 800), (600, 800), (700,), (500, 600, 700, 800))
}
PICTURES = [  # of each set the best, the median or the worst case
    *zip(SIMULATED, ("best", "median", "worst", "best"), strict=True),
    *zip(SIMULATED, ("median", "worst", "best", "median"), strict=True),
]
PICTURE_BYTES = 150_000


def main() -> None:
    """Simulate, choose on validation, measure on test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="name of a shipped model, or folder of a model or run")
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--stage", choices=("validation", "test"), action="append", help="both by default")
    parser.add_argument("--validation-subjects", type=int, metavar="N", help="compare candidates on the first N")
    arguments = parser.parse_args()
    stages = arguments.stage or ["validation", "test"]
    torch.set_num_threads(2)
    try:
        output = arguments.output
        detector = load_model(arguments.model)
        if detector.modality != "t1":
            raise InputError(arguments.model, f"is for {detector.modality} images", "Give a model of t1")
        cases = cohort(detector, arguments.data_dir, output / "cohort")
        if "validation" in stages:
            validation(detector, cases, output, arguments.validation_subjects)
        if "test" in stages:
            test(detector, cases, output)
    except InputError as error:
        raise SystemExit(f"accuracy.py: {error}") from None
    say(f"tables are in {output / 'tables'}")


def cohort(detector: Detector, data_dir: Path, output: Path) -> list[Case]:
    """Return real patients, healthy test scans of other scanners, healthy IXI scans, and lesions simulated in these."""
    cases = leak_free(read_cases(data_dir, "t1", detector.provenance.get("fold") or 0))
    cases = [case for case in cases if case.split in ("val", "test")]
    healthy = [case for case in cases if case.healthy and case.dataset == HEALTHY_SET]
    with shipped_outlines() as outlines:
        subjects = simulate_cohort(
            healthy,
            output,
            Simulation(),
            outlines=outlines,
            jobs=2,
            report=lambda row: say(f"simulate: {row['subject']} {row['status']} {row['message']}"),
        )
    if (subjects["status"] == "failed").all():
        raise InputError(data_dir, "no lesion could be simulated in its scans", subjects["message"].iloc[0])
    real = [case for case in cases if case.lesion is not None]
    elsewhere = [case for case in cases if case.healthy and case.dataset != HEALTHY_SET and case.split == "test"]
    return [
        *(replace(case, dataset=f"{case.dataset} (real)") for case in real),
        *(replace(case, dataset=f"{case.dataset} healthy") for case in elsewhere),
        *manifest_cases(output / "manifest.csv"),
    ]


def validation(detector: Detector, cases: Sequence[Case], output: Path, subjects: int | None) -> None:
    """Compare candidates on real and on simulated validation cases; the tables grow with the candidates.

    ``subjects`` limits those with simulated lesions; what health is comes from the same ones.
    """
    of_validation = [case for case in cases if case.split == "val"]
    hosts = sorted({case.subject for case in of_validation if case.dataset in SIMULATED})[:subjects]
    groups = {
        REAL: [case for case in of_validation if case.lesion is not None and case.dataset not in SIMULATED],
        "simulated": [case for case in of_validation if case.subject in hosts and case.dataset in SIMULATED],
    }
    compared = Candidates(detector, [case for case in of_validation if case.subject in hosts and case.healthy], output)
    for group, lesions in groups.items():
        if not lesions:
            say(f"validation: no {group} lesions")
            continue
        found: tables.Candidates = {}
        for noise in NOISES:
            found |= compared.measure(lesions, noise, SCORES, ["median 5"])
            tables.write_candidates(output / "tables", group, found, PLAIN)
        noise, score, _ = tables.best_of(found)
        found |= compared.measure(lesions, noise, [score], list(CLEANINGS))
        tables.write_candidates(output / "tables", group, found, PLAIN)
        if len({case.subject for case in lesions}) > 1:  # weights are learnt on others
            fitted = fitted_on_others(detector, lesions, output / "ensembles" / group)
            tables.write_ensembles(output / "tables", group, fitted)


class Candidates:
    """Average precision of every score under several kinds of noise, from single reconstructions that are shared.

    Attributes:
        detector: The model.
        healthy: Scans that ``<score>_z`` compares with.
        progress: What was measured before.
    """

    def __init__(self, detector: Detector, healthy: Sequence[Case], output: Path) -> None:
        self.detector, self.healthy = detector, list(healthy)
        self.progress = Progress(output / "candidates.jsonl")
        config = detector.data_config
        self.key = key_of(detector.fingerprint, [content_key(case, config) for case in self.healthy])

    def measure(
        self, cases: Sequence[Case], noise: str, scores: Sequence[str], cleanings: Sequence[str]
    ) -> tables.Candidates:
        """Return by noise, score and cleaning a table of average precision, subjects by pathologies."""
        shared = Shared(self.detector, NOISES[noise])
        scorer = Scorer(self.detector, postprocess=False, infer=shared)
        rows = []
        for done, case in enumerate(cases, 1):
            content = content_key(case, self.detector.data_config)
            key = key_of(self.key, content, NOISES[noise], scores, cleanings)
            values = self.progress.get(key)
            if values is None:
                if scorer.statistics is None:
                    scorer.learn_health(self.healthy, scores)
                prepared, maps = scorer.score(case, scores)
                values = [
                    [score, cleaning, precision(CLEANINGS[cleaning](anomaly, prepared.mask), prepared)]
                    for score, anomaly in maps.final.items()
                    for cleaning in cleanings
                ]  # fmt: skip
                self.progress.put(key, values)
                say(f"validation: {noise}: {done} of {len(cases)}")
            place = [case.subject, SIMULATED.get(case.dataset, REAL)]
            rows += [[*place, *value] for value in values]
        table = pd.DataFrame(rows, columns=["subject", "kind", "score", "cleaning", "value"])
        return {
            (noise, str(score), str(cleaning)): part.pivot(index="subject", columns="kind", values="value")
            for (score, cleaning), part in table.groupby(["score", "cleaning"], sort=False)
        }


class Shared:
    """Reconstructs at several noise levels, each of which is made once for all candidates that average it."""

    def __init__(self, detector: Detector, passes: Sequence[tuple[int, int]]) -> None:
        self.parts = [
            (CachedInference(detector.with_settings(**{**PAPER, "test_timesteps": level})), level - 500 + 1000 * draw)
            for level, draw in passes
        ]  # fmt: skip

    def __call__(self, image: np.ndarray, mask: np.ndarray | None, seed: int, names: Sequence[str]) -> Inference:
        """Return ``(S, X, Y, Z)``, one a noise level and draw, each with noise of its own."""
        made = [part(image, None, seed + offset).reconstruction for part, offset in self.parts]
        return Inference(torch.cat([stack for stack in made if stack is not None]), None)


def without_small(anomaly: Tensor, mask: np.ndarray, voxels: int) -> Tensor:
    """Return a map in which components of fewer voxels, whatever the threshold, have sunk to where they are larger."""
    values = anomaly.numpy()
    levels = np.quantile(values[mask], 1 - np.geomspace(0.5, 0.0005, 40)).astype(np.float32)
    sunk = np.minimum(values, levels[0])
    for low, high in zip(levels, [*levels[1:], np.float32(np.inf)], strict=True):
        large = drop_small(values > low, voxels).numpy()
        sunk[large] = np.minimum(values, high)[large]
    return torch.from_numpy(sunk)


# From a bare map and its brain mask to the map that is thresholded.
CLEANINGS: dict[str, Callable[[Tensor, np.ndarray], Tensor]] = {
    "none": lambda anomaly, mask: anomaly,
    "no median": erode_brain,
    "median 3": lambda anomaly, mask: median_filter(erode_brain(anomaly, mask), 3),
    "median 5": postprocess,
    "median 7": lambda anomaly, mask: median_filter(erode_brain(anomaly, mask), 7),
    "median 3, components of 8": lambda anomaly, mask: without_small(CLEANINGS["median 3"](anomaly, mask), mask, 8),
    "median 5, components of 8": lambda anomaly, mask: without_small(postprocess(anomaly, mask), mask, 8),
    "median 5, components of 64": lambda anomaly, mask: without_small(postprocess(anomaly, mask), mask, 64),
}  # fmt: skip


def precision(anomaly: Tensor, prepared: PreparedCase) -> float:
    """Return average precision over the brain, with what lesion lies outside the mask, as `brainuad evaluate` does."""
    voxels = prepared.mask | prepared.lesion
    return average_precision(np.where(prepared.mask, anomaly, 0)[voxels], prepared.lesion[voxels])


def fitted_on_others(detector: Detector, lesions: Sequence[Case], output: Path) -> pd.DataFrame:
    """Return the sweep of all ensembles on validation scans; weights are learnt on the half that is not measured."""
    subjects = sorted({case.subject for case in lesions})
    found = []
    for half in (0, 1):
        measured = subjects[half::2]
        split = [replace(case, split="test" if case.subject in measured else "val") for case in lesions]
        found.append(
            run_sweep(
                detector,
                split,
                output / str(half),
                sigmas=detector.model_config.sigma_ens,
                ensembles=list(ENSEMBLES),
                report=lambda case, message: say(f"ensembles: {case.dataset} {case.subject} {message}"),
            )[0]
        )
    swept = pd.concat(found)
    return swept.assign(set=[SIMULATED.get(name, REAL) for name in swept["set"]])


def test(detector: Detector, cases: Sequence[Case], output: Path) -> None:
    """Measure the paper's preset and the model's own settings, sweep over widths, draw."""
    # In files of 2 mm native space is the model's.
    protocol = replace(OURS, native=False)
    evaluations = {
        "paper": evaluate_cases(
            detector.with_settings(**PAPER),
            cases,
            output / "paper",
            scores=PLAIN[:2],
            baselines=False,
            protocol=protocol,
            progress=lambda case, message: say(f"paper: {case.dataset} {case.subject} {message}"),
        ),
        "own": evaluate_cases(
            detector,
            cases,
            output / "own",
            scores=TESTED,
            protocol=protocol,
            progress=lambda case, message: say(f"own: {case.dataset} {case.subject} {message}"),
            figures=True,
        ),
    }
    tables.write_test(output / "tables", evaluations, SIMULATED)
    pictures(output)
    swept, _ = run_sweep(
        detector,
        cases,
        output / "sweep",
        sigmas=parse_sigmas("0.3:3.0:0.2"),
        ensembles=list(ENSEMBLES),
        report=lambda case, message: say(f"sweep: {case.dataset} {case.subject} {message}"),
    )
    tables.write_sweep(output / "tables", swept, evaluations, SIMULATED)
    shrink(output / "sweep" / "sweep.png", output / "figures" / "sweep.png")


def pictures(output: Path) -> None:
    """Copy pictures of every real case there is one of, and eight simulated ones, small enough to be committed."""
    names = sorted(path.name for path in (output / "own" / "figures").glob("*-real-*.png"))
    names += [f"{file_name(dataset, which)}.png" for dataset, which in PICTURES]
    for name in names:
        source = output / "own" / "figures" / name
        if source.is_file():  # a set may be missing
            shrink(source, output / "figures" / name)


def shrink(source: Path, target: Path) -> None:
    """Write a picture in 256 colours, the rare ones kept, and smaller until it takes at most ``PICTURE_BYTES``."""
    with Image.open(source) as opened:
        picture = opened.convert("RGB")
    scale = 1.0
    while True:
        size = tuple(round(scale * length) for length in picture.size)
        small = picture.resize(size, Image.Resampling.LANCZOS)
        few = small.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        with atomic_path(target) as temporary:
            few.save(temporary, "PNG", optimize=True)
        if target.stat().st_size <= PICTURE_BYTES:
            return
        scale *= 0.9


def say(message: str) -> None:
    """Write a line to stderr, with the time."""
    print(time.strftime("%H:%M:%S"), message.rstrip(), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
