"""The fast ways to train against the plain one: do their losses agree, and how near is each to the machine's peak?

    python benchmarks/training.py DATA_DIR -o OUT experiment=lite model.cfg.unet_dim=16      # a processor, minutes
    python benchmarks/training.py DATA_DIR -o OUT experiment=paper --steps 300 --profile     # a GPU

DATA_DIR is what ``brainuad prepare`` or ``brainuad pack`` wrote. Further words are settings, as of ``brainuad train``.
Every path takes the same steps on the same slices with the same noise from the same weights; on CUDA steps are graphs
but where "one by one" is said. The first fifth of the steps, in which PyTorch compiles and warms up, counts for no
rate, and nothing is validated, drawn or saved before the last. ``OUT/training.md`` has the table, ``OUT/profile.txt``
the time of every kernel in 20 steps of the last path. A rerun keeps the paths that were finished.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import pandas as pd
import torch
from accuracy_tables import write
from bench.measure import machine_rates
from frontier import composed, say
from torch.utils.flop_counter import FlopCounterMode

from brainuad.config import ExperimentConfig
from brainuad.devices import compile_networks, resolve_device
from brainuad.errors import InputError
from brainuad.experiment.run import fold_cases, train_fold, training_volumes
from brainuad.modelfile import read_model
from brainuad.registry import MODELS
from brainuad.train import step
from brainuad.train.module import Training

PATHS = {
    "float32": ["trainer.precision=32-true"],
    "bfloat16": ["trainer.precision=bf16-mixed"],
    "bfloat16, one by one": ["trainer.precision=bf16-mixed"],
    "bfloat16, compiled": ["trainer.precision=bf16-mixed", "trainer.compile=True"],
}
PLAIN = "float32"
ONE_BY_ONE = "one by one"
WARM_UP = 0.2
PROFILED_STEPS = 20


def main() -> None:
    """Train by every path and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("settings", nargs="*", metavar="SETTING=VALUE")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300, help="several epochs of them")
    parser.add_argument("--profile", action="store_true", help="write what the last path's kernels take")
    arguments = parser.parse_intermixed_args()
    curves, flops, eager_steps = {}, 0.0, step.EAGER_STEPS
    on_cuda = torch.cuda.is_available()
    try:
        for path, settings in PATHS.items():
            if ONE_BY_ONE in path and not on_cuda:
                continue  # all are
            config = composed(
                [
                    *arguments.settings,
                    *settings,
                    f"data_dir={arguments.data_dir}",
                    f"log_dir={arguments.output}",
                    "resume=True",
                    "trainer.max_epochs=100000",
                    f"trainer.max_steps={arguments.steps}",
                    "trainer.check_val_every_n_epoch=1000000",
                    "callbacks.picture_every_n_epochs=0",
                    "callbacks.checkpoint_every_seconds=100000",
                ]
            )
            folder = arguments.output / path.replace(", ", "-")
            say(f"{path}: {arguments.steps} steps")
            step.EAGER_STEPS = arguments.steps + 1 if ONE_BY_ONE in path else eager_steps
            train_fold(config, fold_cases(config, 0), folder, 0)
            curves[path] = pd.read_csv(folder / "metrics.csv")
            flops = flops_of_slice(config) * slices_of_step(folder, config)
    except InputError as error:
        raise SystemExit(f"training.py: {error}") from None
    if arguments.profile:
        profile(config, arguments.output)
    device = resolve_device("auto")
    rates = machine_rates(device)
    write(
        arguments.output / "training.md",
        f"{arguments.steps} steps of {flops / 1e9:.0f} GFLOP in the mean by each path on {device.type}; "
        f"matrix products: {rates['float32_gflop_per_second']:.0f} GFLOP/s in float32, "
        f"{rates['bfloat16_gflop_per_second']:.0f} in bfloat16.",
        ["path", "steps/s", "times", "share of the peak", "loss, last fifth", "validation loss", "apart, mean"],
        [row(path, curves, flops, rates) for path in curves],
    )
    print((arguments.output / "training.md").read_text())


def profile(config: ExperimentConfig, output: Path) -> None:
    """Write the time of every kernel in some whole steps, most first."""
    train, val = training_volumes(config, fold_cases(config, 0))
    device = resolve_device("auto")
    module = Training(config, train.to(device), val)
    module.model.to(device, memory_format=torch.channels_last)
    module.average = module.model
    if config.trainer.compile:
        compile_networks(module.model, device)
    rate = torch.tensor(config.datamodule.cfg.lr, device=device)
    fused = torch.optim.Adam(module.model.parameters(), rate, fused=True, capturable=device.type == "cuda")
    whole = step.WholeStep(module.model, module.average, fused, module.train_volumes, precision=torch.bfloat16)
    whole.largest_norm = config.trainer.gradient_clip_val
    for number in range(step.EAGER_STEPS + 2):  # compiles, and records the graph
        whole(module.draw(number), config.datamodule.cfg.lr, 0.999)
    with torch.profiler.profile() as found:
        for number in range(PROFILED_STEPS):
            whole(module.draw(number), config.datamodule.cfg.lr, 0.999)
    order = f"self_{device.type}_time_total"
    (output / "profile.txt").write_text(found.key_averages().table(sort_by=order, row_limit=60))


def row(path: str, curves: dict[str, pd.DataFrame], flops: float, rates: dict[str, float]) -> list[str]:
    """Return a path's cells: rate, and how far its losses are from the plain path's, epoch by epoch."""
    curve, plain = curves[path], curves[PLAIN]
    speed = steps_per_second(curve)
    peak = rates[f"{path.split(',')[0]}_gflop_per_second"] * 1e9
    late = curve[curve["step"] > (1 - WARM_UP) * curve["step"].max()]
    apart = ((curve["train_loss"] - plain["train_loss"]).abs() / plain["train_loss"]).mean()
    return [
        path,
        f"{speed:.2f}",
        f"{speed / steps_per_second(plain):.2f}",
        f"{flops * speed / peak:.0%}",
        f"{late['train_loss'].mean():.4f}",
        f"{curve['val_loss'].dropna().iloc[-1]:.4f}",
        f"{apart:.2%}",
    ]


def steps_per_second(curve: pd.DataFrame) -> float:
    """Return the rate between the warm-up and the last epoch, which ends with a validation."""
    late = curve[curve["step"] > WARM_UP * curve["step"].max()].iloc[:-1]
    if len(late) < 2:
        raise SystemExit("training.py: --steps leaves no two epochs to measure. Give more")
    span = late.iloc[-1] - late.iloc[0]
    return float(span["step"] / span["seconds"])


def slices_of_step(folder: Path, config: ExperimentConfig) -> float:
    """Return the slices of a step in the mean: an epoch's last batch may be smaller."""
    volumes: int = read_model(folder / "model")[3]["training_scans"]
    return volumes / math.ceil(volumes / config.datamodule.cfg.batch_size)


def flops_of_slice(config: ExperimentConfig) -> float:
    """Return the operations of training on a slice: those forwards, and twice as many backwards."""
    data = config.datamodule.cfg
    x, y = (round(length / data.rescaleFactor) for length in data.imageDim[:2])
    model = MODELS[config.model.cfg.name](config.model.cfg)
    images = torch.zeros(1, 2 * model.neighbours + 1, x, y)
    drawn = model.draw(1, (x, y), torch.Generator())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.loss(images, images == 0, drawn)
    return 3.0 * counter.get_total_flops()


if __name__ == "__main__":
    main()
