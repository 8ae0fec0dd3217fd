"""One network call of ``lite-t1`` in other engines and in 8 bits, in turn with PyTorch; what 8 bits do to precision.

    pip install onnx onnxscript onnxruntime openvino
    python benchmarks/engines.py DATA_DIR -o OUT --subjects 8

DATA_DIR is what ``brainuad prepare --spacing 2`` wrote for IXI. The network is exported to ONNX for ``BATCH`` slices;
its convolutions are quantised statically, with a scale a channel, by the ranges of activations on slices of training
scans. One thread; processor time, medians. Average precision is over lesions of four kinds that are simulated in the
healthy validation scans. ``OUT/engines.md`` and ``OUT/int8.md`` show what was found.
"""

from __future__ import annotations

import argparse
import copy
import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import accuracy_tables as tables
import numpy as np
import onnxruntime
import openvino
import pandas as pd
import torch
from bench.measure import interleaved
from frontier import SCORES, over_kinds, precisions, say, validation_cases
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

from brainuad.data.cohort import read_cases
from brainuad.data.leaks import leak_free
from brainuad.data.loading import load_case
from brainuad.detector import Detector, load_model
from brainuad.study import Scorer
from brainuad.study.progress import Progress

BATCH = 16
TURNS = 7
SCANS = 4  # at three noise levels each, for the ranges of activations
Feed = dict[str, np.ndarray]
Call = Callable[[Feed], np.ndarray]


def main() -> None:
    """Export, quantise, time, and measure precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--subjects", type=int, metavar="N", help="measure lesions in the first N only")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.output.mkdir(parents=True, exist_ok=True)
    detector = load_model("lite-t1", "cpu", "float32")
    feeds = list(noised_slices(detector, arguments.data_dir))
    full, eight = arguments.output / "float32.onnx", arguments.output / "int8.onnx"
    export(detector, feeds[0], full)
    quantise(full, eight, feeds)
    compare_calls(detector, full, eight, feeds[-1], arguments.output)
    compare_precision(detector, eight, arguments.data_dir, arguments.output, arguments.subjects)


def noised_slices(detector: Detector, data_dir: Path) -> Iterator[Feed]:
    """Yield what the network sees of training scans in reconstruction, ``BATCH`` slices at a time."""
    cases = [case for case in leak_free(read_cases(data_dir, "t1", 0)) if case.split == "train"]
    generator = torch.Generator().manual_seed(1)
    for case in cases[:SCANS]:
        volume = torch.from_numpy(load_case(case, detector.data_config).image)
        brain = torch.linspace(0.1, 0.85, BATCH).mul(volume.shape[2]).long()
        clean = 2 * volume[:, :, brain].permute(2, 0, 1)[:, None] - 1
        for level in detector.model_config.step_ensemble:
            t = torch.full((BATCH,), level - 1)
            noise = detector.model.draw_noise(clean, generator)
            yield {"x": detector.model.q_sample(clean, t, noise).numpy(), "t": t.numpy()}


def export(detector: Detector, feed: Feed, path: Path) -> None:
    """Write the network as ONNX."""
    example = tuple(torch.from_numpy(array) for array in feed.values())
    unet = detector.model.unet
    torch.onnx.export(unet, example, path, input_names=["x", "t"], dynamo=True, external_data=False)


def quantise(full: Path, eight: Path, feeds: list[Feed]) -> None:
    """Write the network with convolutions in 8 bits."""
    ready = eight.with_name("ready.onnx")
    quant_pre_process(full, ready, skip_symbolic_shape=True)

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds = iter(feeds)

        def get_next(self) -> Feed | None:
            return next(self.feeds, None)

    quantize_static(
        ready,
        eight,
        Reader(),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["Conv"],
    )


def in_pytorch(detector: Detector, *, bfloat16: bool) -> Call:
    """Return a call of the network by PyTorch."""

    def call(feed: Feed) -> np.ndarray:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            predicted: Tensor = detector.model.unet(*map(torch.from_numpy, feed.values()))
        return np.asarray(predicted.float().numpy())

    return call


def in_onnxruntime(path: Path) -> Call:
    """Return a call of the network by ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda feed: np.asarray(session.run(None, feed)[0])


def in_openvino(path: Path, precision: str) -> Call:
    """Return a call of the network by OpenVINO."""
    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": precision}
    compiled = core.compile_model(core.read_model(str(path)), "CPU", settings)
    return lambda feed: np.asarray(compiled(tuple(feed.values()))[0])


def compare_calls(detector: Detector, full: Path, eight: Path, feed: Feed, output: Path) -> None:
    """Time one call in every engine, all in turn, and write how far the results are apart."""
    calls = {
        "PyTorch, float32": in_pytorch(detector, bfloat16=False),
        "PyTorch, bfloat16": in_pytorch(detector, bfloat16=True),
        "ONNX Runtime, float32": in_onnxruntime(full),
        "ONNX Runtime, int8": in_onnxruntime(eight),
        "OpenVINO, float32": in_openvino(full, "f32"),
        "OpenVINO, bfloat16": in_openvino(full, "bf16"),
        "OpenVINO, int8": in_openvino(eight, "f32"),
    }
    results = {name: call(feed) for name, call in calls.items()}
    turns = {name: functools.partial(call, feed) for name, call in calls.items()}
    medians = interleaved(turns, TURNS, detector.device, time.process_time)
    plain, narrow = (medians[f"PyTorch, {kind}"] for kind in ("float32", "bfloat16"))
    exact = results["PyTorch, float32"]
    rows = [
        [
            name,
            f"{median:.3f}",
            f"{plain / median:.2f}",
            f"{narrow / median:.2f}",
            f"{np.abs(results[name] - exact).max():.1e}",
            f"{np.sqrt(np.square(results[name] - exact).mean()):.1e}",
        ]
        for name, median in medians.items()
    ]
    tables.write(
        output / "engines.md",
        f"One call of {BATCH} slices on one thread; differences from PyTorch in float32, on the scale from -1 to 1.",
        ["engine", "s", "times float32", "times bfloat16", "largest difference", "root mean square"],
        rows,
    )


def compare_precision(detector: Detector, eight: Path, data_dir: Path, output: Path, subjects: int | None) -> None:
    """Write average precision with the network in float32 and in 8 bits."""
    lesions, healthy = validation_cases(detector, data_dir, output, subjects)
    quantised = replace(detector, model=copy.deepcopy(detector.model))
    quantised.model.unet = Engine(in_onnxruntime(eight))
    rows = []
    for name, one in (("float32", detector), ("int8", quantised)):
        scorer = Scorer(detector, infer=one.infer)
        progress = Progress(output / f"{name}.jsonl")
        for place, values in precisions(scorer, SCORES, lesions, healthy, progress, name):
            rows.append({"network": name, "precision": "", **place, **values})
    table = pd.DataFrame(rows)
    found = {score: [over_kinds(table, name, "", score) for name in ("float32", "int8")] for score in SCORES}
    tables.write(
        output / "int8.md",
        f"Average precision over four simulated kinds, {table['subject'].nunique()} validation subjects.",
        ["score", "float32", "int8", "difference"],
        [
            [score, *(f"{values.mean():.4f}" for values in pair), tables.difference(*reversed(pair))]
            for score, pair in found.items()
        ],
    )
    say(f"tables are in {output}")


class Engine(nn.Module):
    """A network in another engine, exported for ``BATCH`` slices."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call
        self.place = nn.Parameter(torch.zeros(0))  # tells a detector that it is on the processor

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the predicted slices (B, 1, X, Y), B at most ``BATCH``."""
        missing = BATCH - len(x)
        slices = torch.cat([x, x[-1:].expand(missing, -1, -1, -1)])
        times = torch.cat([t, t[-1:].expand(missing)])
        return torch.from_numpy(self.call({"x": slices.numpy(), "t": times.numpy()})[: len(x)])


if __name__ == "__main__":
    main()
