"""Average precision against seconds a scan, for networks of several sizes.

    python benchmarks/frontier.py train DATA_DIR -o OUT      # hours on two cores; continues where it stopped
    python benchmarks/frontier.py measure DATA_DIR -o OUT

DATA_DIR is what ``brainuad prepare --spacing 2`` wrote for IXI. Networks of seven sizes take the same steps on the same
slices with the same noise, from new weights; one of them also as many steps as ``lite-t1`` took, which stands beside
them as shipped. Lesions of four kinds are simulated in the healthy validation scans; test scans are not measured.
Scores relative to health compare with the other validation scans. Seconds are of one reconstruction, all networks in
turn, medians. ``OUT/tables`` and ``OUT/frontier.png`` show what was found. What is measured is kept; a rerun goes on
from there.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import accuracy_tables as tables
import pandas as pd
import torch
from accuracy import SIMULATED, cohort, precision
from bench.measure import interleaved
from hydra import compose, initialize_config_module
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch.utils.flop_counter import FlopCounterMode

from brainuad.config import ExperimentConfig
from brainuad.data.cohort import Case
from brainuad.data.loading import content_key, load_case
from brainuad.detector import Detector, load_model
from brainuad.devices import resolve_precision
from brainuad.errors import InputError
from brainuad.evaluation import summarise
from brainuad.experiment.run import fold_cases, train_fold
from brainuad.experiment.settings import to_experiment
from brainuad.files import atomic_path, key_of
from brainuad.models.base import Inference
from brainuad.study import Scorer
from brainuad.study.progress import Progress

STEPS, LONG = 1200, 10_300
# Steps and settings of each network, in the order of its operations; "48 x 2" is the preset lite.
NETWORKS: dict[str, tuple[int, list[str]]] = {
    "16 x 1": (STEPS, ["unet_dim=16", "num_res_blocks=1"]),
    "24 x 1": (STEPS, ["unet_dim=24", "num_res_blocks=1"]),
    "32 x 1": (STEPS, ["unet_dim=32", "num_res_blocks=1"]),
    f"32 x 1, {LONG} steps": (LONG, ["unet_dim=32", "num_res_blocks=1"]),
    "64 x 2, folded by 4": (STEPS, ["unet_dim=64", "unshuffle=4"]),
    "48 x 1": (STEPS, ["num_res_blocks=1"]),
    "48 x 2": (STEPS, []),
    "64 x 2": (STEPS, ["unet_dim=64"]),
}
SHIPPED = "lite-t1"
SCORES = ("l1", "ssim_ensemble", "l1_ssim", "l1_ssim_z")
SHOWN = "l1_ssim_z"  # in the figure; the best on validation scans (docs/results.md)
PLAIN = ("random", "intensity_dark", "intensity_atlas")  # to compare with; they need no network
COMPARED = (SHIPPED, "16 x 1")  # measured in both precisions, which takes as long again
TURNS = 7


def main() -> None:
    """Train, or measure what is trained."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("train", "measure"))
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--subjects", type=int, metavar="N", help="measure lesions in the first N only")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    try:
        if arguments.stage == "train":
            train(arguments.data_dir, arguments.output)
        else:
            measure(arguments.data_dir, arguments.output, arguments.subjects)
    except InputError as error:
        raise SystemExit(f"frontier.py: {error}") from None


def settings(name: str, data_dir: Path, output: Path) -> ExperimentConfig:
    """Return how a network is trained."""
    steps, own = NETWORKS[name]
    overrides = [
        "experiment=lite",
        f"data_dir={data_dir}",
        f"log_dir={output}",
        "resume=True",
        "model.cfg.train_timesteps=[240,900]",  # around the noise levels of reconstruction
        "trainer.precision=bf16-mixed",
        "trainer.check_val_every_n_epoch=40",
        "trainer.max_epochs=100000",
        f"trainer.max_steps={steps}",
        f"trainer.decay_steps={steps * 3 // 4}",
        *(f"model.cfg.{setting}" for setting in own),
    ]
    return composed(overrides)


def composed(overrides: list[str]) -> ExperimentConfig:
    """Return the experiment that ``brainuad train`` would run with these settings."""
    with initialize_config_module("brainuad.conf", version_base="1.3"):
        return to_experiment(compose("config", overrides=overrides))


def folder_of(name: str, output: Path) -> Path:
    """Return where a network is trained."""
    return output / name.replace(" ", "").replace(",", "-")


def train(data_dir: Path, output: Path) -> None:
    """Train every network that is not trained yet."""
    for name, (steps, _) in NETWORKS.items():
        config = settings(name, data_dir, output)
        say(f"{name}: {steps} steps")
        train_fold(config, fold_cases(config, 0), folder_of(name, output), 0)


def measure(data_dir: Path, output: Path, subjects: int | None) -> None:
    """Measure average precision and seconds of every network in both precisions, and write tables and figure."""
    shipped = load_model(SHIPPED, "cpu", "float32")
    lesions, healthy = validation_cases(shipped, data_dir, output, subjects)
    # The noise levels of the shipped model for all.
    levels = {"noise_ensemble": True, "step_ensemble": shipped.model_config.step_ensemble}
    trained = {name: folder_of(name, output) for name in NETWORKS}
    for name, folder in list(trained.items()):
        if not (folder / "training.json").is_file():
            say(f"{name} is not trained to the end, and left out")
            del trained[name]
    networks = {name: Detector.load(path / "model").with_settings(**levels) for name, path in trained.items()}
    networks[SHIPPED] = shipped
    progress = Progress(output / "frontier.jsonl")
    both = {"float32", resolve_precision("auto", shipped.device)}
    rows = []
    for name, detector in networks.items():
        for kind in sorted(both) if name in COMPARED else [min(both)]:
            precise = replace(detector, precision=kind)
            found = precisions(Scorer(precise), SCORES, lesions, healthy, progress, f"{name}, {kind}")
            for place, values in found:
                rows.append({"network": name, "precision": kind, **place, **values})
    unchanged = Scorer(shipped, infer=lambda image, mask, seed, names: Inference(torch.from_numpy(image)[None], None))
    plain = precisions(unchanged, PLAIN, lesions, healthy, progress, "no network")
    rows += [{"network": "", "precision": "", **place, **values} for place, values in plain]
    write(output, pd.DataFrame(rows), timings(networks, healthy[0], sorted(both)), networks)
    if len(both) > 1:
        write_precision(
            output, pd.DataFrame(rows), [replace(shipped, precision=kind) for kind in sorted(both)], healthy
        )


def validation_cases(
    detector: Detector, data_dir: Path, output: Path, subjects: int | None
) -> tuple[list[Case], list[Case]]:
    """Return lesions simulated in the first validation subjects, and all healthy validation scans."""
    cases = [case for case in cohort(detector, data_dir, output / "cohort") if case.split == "val"]
    chosen = sorted({case.subject for case in cases})[:subjects]
    lesions = [case for case in cases if case.subject in chosen and case.dataset in SIMULATED]
    return lesions, [case for case in cases if case.lesion is None]


def precisions(
    scorer: Scorer, names: Sequence[str], lesions: list[Case], healthy: list[Case], progress: Progress, what: str
) -> list[tuple[dict[str, str], dict[str, float]]]:
    """Return subject and kind of each case, and its average precision by score."""
    config = scorer.detector.data_config
    against = [content_key(case, config) for case in healthy]
    found = []
    for done, case in enumerate(lesions, 1):
        key = key_of(scorer.detector.result_key, against, content_key(case, config), names)
        values = progress.get(key)
        if values is None:
            if scorer.statistics is None:
                scorer.learn_health(healthy, names)
            prepared, maps = scorer.score(case, names)
            values = {name: precision(torch.from_numpy(map), prepared) for name, map in maps.final.items()}
            progress.put(key, values)
            say(f"{what}: {done} of {len(lesions)}")
        found.append(({"subject": case.subject, "kind": SIMULATED[case.dataset]}, values))
    return found


def timings(networks: dict[str, Detector], case: Case, precisions: list[str]) -> dict[tuple[str, str], float]:
    """Return seconds of one reconstruction by network and precision."""
    image = load_case(case, networks[SHIPPED].data_config).image
    turns = {
        f"{name}|{kind}": functools.partial(replace(detector, precision=kind).reconstruct, image)
        for name, detector in networks.items()
        for kind in precisions
    }
    for reconstruct in turns.values():
        reconstruct()
    seconds = interleaved(turns, TURNS, networks[SHIPPED].device)
    return {(key.split("|")[0], key.split("|")[1]): value for key, value in seconds.items()}


def write(
    output: Path, rows: pd.DataFrame, seconds: dict[tuple[str, str], float], networks: dict[str, Detector]
) -> None:
    """Write the table of networks, the table of precisions, and the figure."""
    kinds = sorted(kind for kind in rows["precision"].unique() if kind)

    table, points = [], []
    for name, detector in networks.items():
        found = over_kinds(rows, name, kinds[0], SHOWN)
        points.append((name, seconds[name, kinds[0]], found))
        table.append(
            [
                name,
                f"{sum(weight.numel() for weight in detector.model.parameters()) / 1e6:.1f}",
                f"{gflop(detector):.2f}",
                *(f"{seconds[name, kind]:.2f}" for kind in kinds),
                *(f"{over_kinds(rows, name, kinds[0], score).mean():.3f}" for score in SCORES[:-1]),
                tables.cell(found),
            ]
        )
    subjects = rows["subject"].nunique()
    tables.write(
        output / "tables" / "frontier.md",
        f"{STEPS} steps of 16 slices each where no other number is said, {SHIPPED} as shipped; average precision over "
        f"four simulated kinds, {subjects} validation subjects, network in {kinds[0]}. Without a network: "
        + ", ".join(f"{name} {over_kinds(rows, '', '', name).mean():.3f}" for name in PLAIN)
        + ".",
        ["network", "million weights", "GFLOP a slice", *(f"s in {kind}" for kind in kinds), *SCORES],
        table,
    )
    draw(output / "frontier.png", points, kinds[0], subjects)


def over_kinds(rows: pd.DataFrame, name: str, kind: str, score: str) -> pd.Series:
    """Return each subject's average precision in the mean over kinds of lesions."""
    part = rows[(rows["network"] == name) & (rows["precision"] == kind)]
    return tables.over_kinds(part.pivot(index="subject", columns="kind", values=score))


def write_precision(output: Path, rows: pd.DataFrame, shipped: list[Detector], healthy: list[Case]) -> None:
    """Write what the precisions change: average precision, and what the calibrated threshold marks in health."""
    kinds = [detector.precision for detector in shipped]
    table = [
        [f"{name}, {score}", *(f"{part.mean():.4f}" for part in pair), tables.difference(*pair)]
        for name in COMPARED
        for score in SCORES
        for pair in [[over_kinds(rows, name, kind, score) for kind in kinds]]
    ]
    for score in ("ssim_ensemble", SHOWN):
        pair = [pd.Series(marked(detector, healthy, score)) for detector in shipped]
        what = f"{SHIPPED}, {score}: healthy brain above its 1 % threshold, %"
        table.append([what, *(f"{part.mean():.3f}" for part in pair), tables.difference(*pair)])
    tables.write(
        output / "tables" / "precision.md",
        f"Average precision in both precisions, {rows['subject'].nunique()} validation subjects; healthy brain marked, "
        f"{len(healthy)} healthy validation scans.",
        ["", *kinds, "difference"],
        table,
    )


def marked(detector: Detector, healthy: list[Case], score: str) -> list[float]:
    """Return the percentage of each healthy brain above the threshold that the model was calibrated to."""
    assert detector.calibration is not None
    threshold = detector.calibration.threshold(score, 0.01)
    scorer, shares = Scorer(detector), []
    for case in healthy:
        prepared, maps = scorer.score(case, [score])
        shares.append(100.0 * float((maps.final[score] > threshold)[prepared.mask].mean()))
    return shares


def gflop(detector: Detector) -> float:
    """Return the operations of the network for a slice of the model's grid, in 10^9."""
    config = detector.data_config
    x, y = (round(length / config.rescaleFactor) for length in config.imageDim[:2])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        detector.model.unet(torch.zeros(1, 1, x, y), torch.zeros(1, dtype=torch.long))
    return counter.get_total_flops() / 1e9


def draw(path: Path, points: list[tuple[str, float, pd.Series]], kind: str, subjects: int) -> None:
    """Draw average precision with its interval against seconds."""
    figure = Figure(figsize=(6.4, 4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, seconds, values in points:
        found = summarise(values)
        error = [[found.mean - found.low], [found.high - found.mean]]
        style = "D" if name == SHIPPED else "o"
        axes.errorbar(seconds, found.mean, error, fmt=style, color="C1" if name == SHIPPED else "C0", capsize=2)
        axes.annotate(name, (seconds, found.mean), xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.set_xscale("log")
    axes.set_xticks(ticks := [0.5, 1, 2, 4, 8], [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel(f"seconds a reconstruction, two cores, {kind}")
    axes.set_ylabel(f"average precision, {SHOWN}")
    axes.set_title(f"{subjects} validation subjects with four simulated kinds of lesions", fontsize=9)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def say(message: str) -> None:
    """Write a line to stderr, with the time."""
    print(time.strftime("%H:%M:%S"), message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
