"""Time each stage of a case, in turn with a plain implementation of the published pipeline, and write both tables.

    python benchmarks/baseline.py [-o DIR] [XxYxZ ...]                      # 96x96x50 and 192x192x100 by default
    python benchmarks/baseline.py 96x96x50 --threads 1 --stages erode median

Each size is measured on one thread and on all. The plain implementation is `bench/baseline.py`.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from bench import STAGES, run_bench, table
from bench.stages import SCORING

from brainuad.detector import load_model
from brainuad.files import write_json, write_text

SMALL, LARGE = "96x96x50", "192x192x100"
LARGE_STAGES = [*SCORING, "write"]  # the others are the model's, or grow with the voxels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", default=[SMALL, LARGE])
    parser.add_argument("-o", "--output", type=Path, default=Path("bench"))
    parser.add_argument("--model", default="lite-t1", help="name of a shipped model, or folder of a model")
    parser.add_argument("--stages", nargs="+", choices=STAGES, help="all by default")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, os.cpu_count() or 1])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="compile the network first")
    arguments = parser.parse_args()
    detector = load_model(arguments.model, arguments.device)
    if arguments.compile:
        detector = detector.compile()
    for name in arguments.sizes:
        x, y, z = map(int, name.split("x"))
        stages = arguments.stages or (LARGE_STAGES if x * y * z > 10**6 else STAGES)
        for threads in dict.fromkeys(arguments.threads):
            found = run_bench(detector, [(x, y, z)], stages, repeats=arguments.repeats, threads=threads)
            print(table(found), end="\n\n", flush=True)
            target = arguments.output / f"{name}_{threads}threads"
            write_text(target.with_suffix(".txt"), table(found) + "\n")
            write_json(target.with_suffix(".json"), found.to_dict())


if __name__ == "__main__":
    main()
