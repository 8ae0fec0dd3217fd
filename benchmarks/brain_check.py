"""What tells a brain from none: `likeness` of real scans, and of what only resembles them.

    python benchmarks/brain_check.py BRAINS...               # brain-extracted scans, zero outside the brain
    python benchmarks/brain_check.py --fakes BRAINS...

Each is registered as ``brainuad score`` does it. Fakes are made of each scan at half its resolution: its intensities in
any order, smooth noise of three widths with its intensities and outline, and the scan turned by 90 and 180 degrees. A
scan is taken for a brain above 1.1. One line a scan goes to stdout.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from brainuad.data.atlas import place_brain, sample_brain
from brainuad.data.registration import register_to_atlas
from brainuad.data.structure import likeness
from brainuad.data.volume import Volume

TURNS = [(axis, degrees) for axis in "xyz" for degrees in (90, -90, 180)]


def main() -> None:
    """Print the likeness of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("brains", nargs="+", type=Path)
    parser.add_argument("--fakes", action="store_true")
    arguments = parser.parse_args()
    for path in arguments.brains:
        scan = Volume.load(path)
        for name, volume in fakes(scan) if arguments.fakes else [("as it is", scan)]:
            print(f"{path.name}  {name}  {measured(volume)}", flush=True)


def measured(scan: Volume) -> str:
    """Return the likeness of a scan that is zero outside the brain, or why there is none."""
    brain = scan.array > 0
    try:
        found = register_to_atlas(scan)
    except ValueError as error:
        return str(error)
    placement, mask = place_brain(scan.with_array(brain), found, spacing=2.0)
    image = placement.cut(sample_brain(scan, placement, mask), mask)
    return f"{likeness(image, placement.cut(mask, mask).inside):.2f}"


def fakes(scan: Volume) -> Iterator[tuple[str, Volume]]:
    """Yield what is no brain, or lies another way."""
    scan = Volume.from_array(scan.array[::2, ::2, ::2], scan.affine @ np.diag([2.0, 2, 2, 1]))
    rng = np.random.default_rng(0)
    inside = scan.array > 0
    for name, order in [
        ("in any order", rng.permutation(inside.sum())),
        *((f"noise of {width} voxels", ranks(rng, inside, width)) for width in (2, 4, 8)),
    ]:
        array = np.zeros_like(scan.array)
        array[inside] = np.sort(scan.array[inside])[order]
        yield name, scan.with_array(array)
    middle = scan.affine @ [*((np.array(scan.array.shape) - 1) / 2), 1]
    for axis, degrees in TURNS:
        turn = np.eye(4)
        turn[:3, :3] = Rotation.from_euler(axis, degrees, degrees=True).as_matrix()
        turn[:3, 3] = middle[:3] - turn[:3, :3] @ middle[:3]
        yield f"turned by {degrees} about {axis}", Volume.from_array(scan.array, turn @ scan.affine)


def ranks(rng: np.random.Generator, inside: np.ndarray, width: float) -> np.ndarray:
    """Return the ranks of smooth noise within a mask."""
    values = ndimage.gaussian_filter(rng.normal(size=inside.shape), width)[inside]
    return np.argsort(np.argsort(values))


if __name__ == "__main__":
    main()
