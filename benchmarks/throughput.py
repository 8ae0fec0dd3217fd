"""Time and memory of `brainuad evaluate` against the number of scans, each of the size of a BraTS scan.

    python benchmarks/throughput.py MODEL DATA -o DIR [--volumes 50 200 800] [--processes P] [-- --device cuda ...]

DATA is a manifest or a folder in the paper's layout whose prepared scans lie in atlas space. A few of them are brought
to 240 x 240 x 155 voxels of 1 mm, in gzip, with mask and lesion. Every volume of a run is a file of its own, with
another time stamp in its gzip header: so it is read, hashed, placed, reconstructed (by the noise of its own subject)
and measured, like any other. A tenth are healthy and a tenth annotated validation scans, all others annotated test
scans; so from 30 volumes on there are enough healthy ones for scores relative to health, also with a model that carries
none. Each run is a new process with an empty cache.

Wall time, CPU time and peak memory are the operating system's, of the process and all that it started; of several
processes the memory is that of the largest. "Each further" is the slope from the run before: it leaves out start-up.
What follows "--" goes to `brainuad evaluate`.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from bench.measure import describe_machine

from brainuad.data.cohort import MANIFEST_COLUMNS, Case, read_cases
from brainuad.data.leaks import leak_free
from brainuad.data.placement import Placement
from brainuad.data.volume import Volume
from brainuad.detector import load_model
from brainuad.devices import resolve_device
from brainuad.files import write_json, write_text

GRID = Placement.around_atlas((240, 240, 155), 1.0)
ORIGINALS = 5  # healthy scans, and as many with lesions
BRIGHTEST = 1000  # of an original, in 16 bits
# A small process in between: what one starts counts its parent's memory at that moment as its own.
USAGE = """
import json, resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
used = resource.getrusage(resource.RUSAGE_CHILDREN)
json.dump([used.ru_utime + used.ru_stime, used.ru_maxrss], open(sys.argv[1], "w"))
sys.exit(code)
"""
STAMP = slice(4, 8)  # of a gzip header
MIB = 2**20


@dataclass(frozen=True)
class Original:
    """Files of a scan of 240 x 240 x 155 voxels; no lesion in a healthy one."""

    image: Path
    mask: Path
    lesion: Path | None


@dataclass(frozen=True)
class Run:
    """What one run took."""

    volumes: int
    processes: int
    wall_seconds: float
    cpu_seconds: float
    peak_mib: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("-o", "--output", type=Path, default=Path("throughput"))
    parser.add_argument("--volumes", type=int, nargs="+", default=[50, 200, 800])
    parser.add_argument("--processes", type=int, default=1)
    ours, theirs = split_words(sys.argv[1:])
    arguments = parser.parse_args(ours)
    detector = load_model(arguments.model, "cpu")
    originals = list(make_originals(arguments.data, detector.modality, arguments.output / "originals"))
    runs: list[Run] = []
    for volumes in sorted(arguments.volumes):
        folder = arguments.output / f"{volumes}x{arguments.processes}"
        shutil.rmtree(folder, ignore_errors=True)
        manifest = make_cohort(originals, volumes, folder / "cohort")
        runs.append(timed(arguments.model, manifest, folder, volumes, arguments.processes, theirs))
        for done_with in ("cohort", "cache"):
            shutil.rmtree(folder / done_with)
        print(table(runs), end="\n\n", flush=True)
    name = f"{arguments.processes}processes"
    write_text(arguments.output / f"{name}.md", table(runs) + "\n")
    about = {"model": arguments.model, "words": theirs, "machine": describe_machine(resolve_device("auto"))}
    write_json(arguments.output / f"{name}.json", about | {"runs": [asdict(run) for run in runs]})


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return what stands before and after "--"."""
    end = list(words).index("--") if "--" in words else len(words)
    return list(words[:end]), list(words[end + 1 :])


def make_originals(data: str, modality: str, folder: Path) -> Iterator[Original]:
    """Yield healthy scans, then scans with lesions, on the large grid; files that are there stay."""
    cases = leak_free(read_cases(data, modality, training=False))
    healthy = [case for case in cases if case.lesion is None and case.label == 0 and case.split != "train"]
    ill = [case for case in cases if case.lesion is not None]
    if not healthy or not ill:
        sys.exit(f"{data}: healthy scans and scans with lesions are needed, there are {len(healthy)} and {len(ill)}")
    for number, case in enumerate(healthy[:ORIGINALS] + ill[:ORIGINALS]):
        yield enlarged(case, folder / f"{number}")


def enlarged(case: Case, folder: Path) -> Original:
    """Return a prepared scan on the large grid."""
    found = Original(folder / "image.nii.gz", folder / "mask.nii.gz", folder / "lesion.nii.gz" if case.lesion else None)
    mask = GRID.sample(Volume.load(case.mask), order=0) > 0.5
    image = np.maximum(GRID.sample(Volume.load(case.image)), 0) * mask
    save(np.rint(image * (BRIGHTEST / image.max())).astype(np.int16), found.image)
    save(mask.astype(np.uint8), found.mask)
    if case.lesion and found.lesion:
        save((GRID.sample(Volume.load(case.lesion), order=0) > 0.5).astype(np.uint8), found.lesion)
    return found


def save(array: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, GRID.affine), path)


def make_cohort(originals: Sequence[Original], volumes: int, folder: Path) -> Path:
    """Write so many copies of the images, no two alike, and return their manifest."""
    folder.mkdir(parents=True)
    healthy = [original for original in originals if original.lesion is None]
    ill = [original for original in originals if original.lesion is not None]
    validation = max(1, volumes // 10)
    rows = []
    for number in range(volumes):
        kind = healthy if number < validation else ill
        original = kind[number % len(kind)]
        contents = bytearray(original.image.read_bytes())
        contents[STAMP] = struct.pack("<I", number)
        image = folder / f"{number:05}.nii.gz"
        image.write_bytes(contents)
        split = "val" if number < 2 * validation else "test"
        lesion = "" if original.lesion is None else original.lesion.resolve()
        rows.append([f"subject{number:05}", image.name, original.mask.resolve(), lesion, int(kind is ill), split])
    with (folder / "manifest.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows([MANIFEST_COLUMNS, *rows])
    return folder / "manifest.csv"


def timed(model: str, manifest: Path, folder: Path, volumes: int, processes: int, more: Sequence[str]) -> Run:
    """Evaluate in a process of its own, or several, and return what that took."""
    command = [str(Path(sys.executable).with_name("brainuad"))]
    if processes > 1:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python"]
        command = [*torchrun, "--nproc-per-node", str(processes), *command]
    command += ["evaluate", model, str(manifest), "-o", str(folder / "out"), *more]
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    used = folder / "used.json"
    start = time.perf_counter()
    measured = [sys.executable, "-c", USAGE, str(used), *command]
    done = subprocess.run(measured, env=environment, stdout=subprocess.DEVNULL, check=False)
    wall = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{' '.join(command)}: ended with {done.returncode}")
    cpu, peak = json.loads(used.read_text())
    return Run(volumes, processes, wall, cpu, peak * (1 if sys.platform == "darwin" else 1024) / MIB)


def table(runs: Sequence[Run]) -> str:
    """Return the runs as a Markdown table."""
    lines = [
        "| volumes | processes | wall, s | volumes / s | s a volume | each further, s | CPU s a volume "
        "| each further, CPU s | peak MiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for before, run in zip([None, *runs], runs, strict=False):
        further = ["", ""]
        if before is not None:
            more = run.volumes - before.volumes
            further = [
                f"{(run.wall_seconds - before.wall_seconds) / more:.3f}",
                f"{(run.cpu_seconds - before.cpu_seconds) / more:.3f}",
            ]
        lines.append(
            f"| {run.volumes} | {run.processes} | {run.wall_seconds:.1f} | {run.volumes / run.wall_seconds:.3f} "
            f"| {run.wall_seconds / run.volumes:.3f} | {further[0]} | {run.cpu_seconds / run.volumes:.3f} "
            f"| {further[1]} | {run.peak_mib:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
