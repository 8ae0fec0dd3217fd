"""Compare with the plain implementation of the published pipeline on one thread and on all, and write both tables.

    python benchmarks/baseline.py [-o DIR] [--repeats N] [XxYxZ ...]

The plain implementation is `brainuad.bench.baseline`; `brainuad bench` times any of its stages on one size.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from brainuad.bench import STAGES, run_bench, table
from brainuad.bench.stages import SCORING
from brainuad.detector import load_model
from brainuad.files import write_json, write_text

SMALL, LARGE = "96x96x50", "192x192x100"
LARGE_STAGES = [*SCORING, "write"]  # the others are the model's, or grow with the voxels


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sizes", nargs="*", default=[SMALL, LARGE])
    parser.add_argument("-o", "--output", type=Path, default=Path("bench"))
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    detector = load_model("lite-t1", "cpu")
    for name in arguments.sizes:
        x, y, z = map(int, name.split("x"))
        stages = LARGE_STAGES if x * y * z > 10**6 else STAGES
        for threads in dict.fromkeys((1, os.cpu_count() or 1)):
            found = run_bench(detector, [(x, y, z)], stages, repeats=arguments.repeats, threads=threads)
            print(table(found), end="\n\n", flush=True)
            target = arguments.output / f"{name}_{threads}threads"
            write_text(target.with_suffix(".txt"), table(found) + "\n")
            write_json(target.with_suffix(".json"), found.to_dict())


if __name__ == "__main__":
    main()
