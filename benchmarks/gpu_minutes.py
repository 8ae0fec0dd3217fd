"""What ``gpu_minutes.sh`` runs: trains, measures and packs one model after the other until the time is used.

Each training gets its share of the time that is left and ends annealed. What came of it is written before the next one
begins: ``OUT/parts/NAME``, which `brainuad models unpack` makes a model of, and ``OUT/record.json`` with steps a
second, the share of the matrix rate that they are, and the curve of losses. Whatever fails is recorded and does not
end the rest.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

COMMAND = [sys.executable, "-c", "from brainuad.cli import main; main()"]
AROUND = 12  # seconds that starting, loading and packing take besides a training's own, but at most
AROUND_SHARE = 0.1  # of all the time there is
LEAST = 3  # seconds below which no training is begun
GRACE = 60  # seconds for imports, loading and the last writes, after which a training is stopped
PART_SIZE = "15MB"
MOST_BYTES = int(float(os.environ.get("MOST_MB", "66")) * 1e6)  # of all parts together
CURVE_POINTS = 300
WORK = Path(os.environ.get("WORK", "gpu_minutes_work"))
# Adam's rate grows with the square root of the batch: that of the presets is for 16 slices (lite) and 32 (paper).
GPU = ["trainer.precision=auto", "logger.tensorboard=false", "callbacks.picture_every_n_epochs=0"]
LITE = ["experiment=lite", "datamodule.cfg.batch_size=256", "datamodule.cfg.lr=1.6e-3", *GPU]
# the published network on the grid of lite, so that any scan can be scored with it
LARGE = [
    "datamodule=lite",
    "datamodule.cfg.batch_size=64",
    "datamodule.cfg.lr=1.4e-4",
    "trainer.compile=True",
    "trainer.warmup_steps=200",
    "num_folds=1",
    *GPU,
]
RESTORATION = [
    "experiment=restoration",
    "datamodule.cfg.batch_size=256",
    "datamodule.cfg.lr=3e-3",
    "trainer.compile=True",
    *GPU,
]
SMOKE = ["experiment=smoke", "logger.tensorboard=false"]


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes:
        data: Environment variable and default of the packed data.
        seconds: How long; None for an equal part of what is left to those without.
        settings: For `brainuad train`.
    """

    data: tuple[str, str]
    seconds: int | None
    settings: list[str]


T1, T2 = ("T1", "train_t1.npz"), ("T2", "train_t2.npz")
RECIPES = {
    "lite-t1": Recipe(T1, 90, [*LITE, "model=lite-ddpm_dae"]),
    "lite-t2": Recipe(T2, 90, [*LITE, "model=lite-ddpm_dae", "datamodule.cfg.mode=t2"]),
    "paper-t1": Recipe(T1, None, ["experiment=paper", *LARGE]),
    "paper-t2": Recipe(T2, None, ["experiment=paper", *LARGE, "datamodule.cfg.mode=t2"]),
    "restoration-t1": Recipe(T1, None, RESTORATION),
    "restoration-any": Recipe(T1, None, [*RESTORATION, "model.cfg.inverted=0.85"]),
    "cddpm-t1": Recipe(T1, None, ["experiment=cddpm", *LARGE]),
    "smoke": Recipe(T1, None, SMOKE),
    "smoke-restoration": Recipe(
        T1, None, [*SMOKE, "model=restoration", "model.cfg.unet_dim=16", "datamodule.cfg.aug_intensity=false"]
    ),
}
SETS = {"first": ["lite-t1", "lite-t2", "paper-t1"], "second": ["paper-t2", "restoration-t1", "cddpm-t1"]}


def main() -> None:
    """Go through the recipes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--began", type=int, default=int(time.time()), help="when the clock began to run")
    parser.add_argument("seconds", type=int)
    parser.add_argument("what", nargs="*", default=["first"])
    arguments = parser.parse_args()
    names = [name for what in arguments.what for name in SETS.get(what, [what])]
    unknown = [name for name in names if name not in RECIPES]
    if unknown:
        raise SystemExit(f"gpu_minutes.py: {unknown[0]!r} is unknown. Known: {', '.join([*SETS, *RECIPES])}")
    end = arguments.began + arguments.seconds
    output = Path(os.environ.get("OUT", "gpu_minutes"))
    for folder in (output, WORK):
        folder.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {"machine": machine(), "trainings": []}
    for number, name in enumerate(names):
        around = min(AROUND, AROUND_SHARE * arguments.seconds)
        seconds = share_of_time(end - time.time(), names[number:], around)
        row = {"name": name, "seconds": seconds, "status": "left out: no time was left"}
        if seconds >= LEAST:
            row |= trained(name, seconds, output)
        record["trainings"].append(row)
        (output / "record.json").write_text(json.dumps(record, indent=1))
        print(json.dumps({key: value for key, value in row.items() if key != "curve"}), flush=True)
    if not any(row["status"] == "done" for row in record["trainings"]):
        raise SystemExit(1)


def share_of_time(left: float, names: list[str], around: float = AROUND) -> int:
    """Return the seconds that the first of ``names`` may train, so that all of them fit into what is left."""
    free = max(0.0, left - around * len(names))
    fixed = [RECIPES[name].seconds for name in names]
    known = sum(seconds for seconds in fixed if seconds is not None)
    if fixed[0] is not None:
        # where there is too little for all, those that have a time of their own get as much less
        return int(min(fixed[0], free * fixed[0] / known))
    return max(0, int((free - known) / fixed.count(None)))


def trained(name: str, seconds: int, output: Path) -> dict[str, Any]:
    """Train and pack one model; return what there is to say about it."""
    recipe = RECIPES[name]
    variable, default = recipe.data
    data, runs = os.environ.get(variable, default), WORK / "runs"
    clock = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    settings = [*recipe.settings, f"data_dir={data}", f"log_dir={runs}", f"name={name}", f"trainer.max_time={clock}"]
    print(f"{name}: {seconds} s", flush=True)
    with (WORK / f"{name}.log").open("w") as log:
        process = subprocess.Popen([*COMMAND, "train", *settings], stdout=log, stderr=subprocess.STDOUT)
        try:
            process.wait(timeout=seconds + GRACE)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)  # it still writes its model
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
    folders = sorted((runs / name).glob("*/*/*/fold0"))
    if not folders or not (folders[-1] / "model" / "model.safetensors").exists():
        return {"status": "failed", "message": (WORK / f"{name}.log").read_text()[-2000:]}
    found = rates(folders[-1])
    parts = output / "parts" / name
    shutil.rmtree(parts, ignore_errors=True)
    for bits in ("16", "8"):
        into = ["-o", str(parts), "--part-size", PART_SIZE, "--bits", bits]
        command = [*COMMAND, "models", "pack", str(folders[-1] / "model"), *into]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        if bits == "8" or size_of(output / "parts") <= MOST_BYTES:
            break
        shutil.rmtree(parts)
    return {"status": "done", "bits": int(bits), "bytes": size_of(parts), **found}


def size_of(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def rates(folder: Path) -> dict[str, Any]:
    """Return steps and slices a second after the warm-up, their share of the matrix rate, and the curve."""
    from omegaconf import OmegaConf
    from training import flops_of_slice

    from brainuad.devices import resolve_device
    from brainuad.experiment.settings import to_experiment

    curve = pd.read_csv(folder / "metrics.csv")
    config = to_experiment(OmegaConf.load(folder.parent / ".hydra" / "config.yaml"))
    late = curve[curve["seconds"] >= curve["seconds"].iloc[-1] / 2]
    span = late.iloc[-1] - late.iloc[0]
    speed = float(span["step"] / span["seconds"]) if span["seconds"] > 0 else math.nan
    batch = config.datamodule.cfg.batch_size
    device = resolve_device("auto")
    thinned = curve.iloc[:: max(1, len(curve) // CURVE_POINTS)]
    validated = curve.dropna(subset="val_loss")
    return {
        "steps": int(curve["step"].iloc[-1]),
        "steps_per_second": round(speed, 2),
        "slices_per_second": round(speed * batch, 1),
        "share_of_matrix_rate": round(flops_of_slice(config) * batch * speed / matrix_rate(device), 4),
        "validation_loss": float(validated["val_loss"].iloc[-1]),
        "curve": {
            "train": thinned[["step", "seconds", "train_loss"]].to_numpy().tolist(),
            "validation": validated[["step", "seconds", "val_loss"]].to_numpy().tolist(),
        },
    }


def matrix_rate(device: torch.device) -> float:
    """Return the operations a second of a matrix product, in the precision that training takes on a device."""
    from bench.measure import fastest

    size, kind = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    left, right = (torch.rand(size, size, device=device).to(kind) for _ in range(2))
    return 2 * size**3 / fastest(partial(torch.mm, left, right), 5, device)


def machine() -> dict[str, Any]:
    """Return what computes."""
    on_cuda = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if on_cuda else "processor"
    return {"device": name, "torch": torch.__version__, "processors": os.cpu_count()}


if __name__ == "__main__":
    main()
