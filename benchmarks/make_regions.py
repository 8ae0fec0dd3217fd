"""Make the map of regions that findings are located with, from parcellations in atlas space.

    python benchmarks/make_regions.py IXI -o src/brainuad/assets

IXI is what ``brainuad prepare --spacing 2`` wrote of scans with MUSE parcellations; the training subjects are taken. A
voxel of 2 mm that is brain in half of them gets the region that most have there, of those in ``regions.csv``. Fluid
outside the ventricles is none of these: a sulcus belongs to the nearest region, as far as 6 mm.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy import ndimage

from brainuad.data.atlas import FIELD_OF_VIEW
from brainuad.data.cohort import read_cases
from brainuad.data.placement import Placement
from brainuad.data.regions import region_names
from brainuad.data.volume import Volume

SPACING, REACH = 2.0, 6.0  # mm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    x, y, z = (round(length / SPACING) for length in FIELD_OF_VIEW)
    frame = Placement.around_atlas((x, y, z), SPACING)
    known = sorted(region_names())
    place = np.full(256, len(known))  # of labels without a name
    place[known] = range(len(known))
    votes = np.zeros((len(known) + 1, *frame.shape), dtype=np.uint8)
    cases = [case for case in read_cases(arguments.cohort, "t1") if case.split == "train"]
    for case in cases:
        path = Path(str(case.image).replace("/t1/", "/labels/").replace("_t1.", "_labels."))
        labels = place[np.rint(frame.sample(Volume.load(path), order=0)).astype(np.uint8)][None]
        np.put_along_axis(votes, labels, np.take_along_axis(votes, labels, 0) + 1, 0)
    brain = votes[:-1].sum(0, dtype=np.int64) * 2 >= len(cases)
    regions = np.where(brain, np.array(known)[votes[:-1].argmax(0)], 0)
    away, nearest = ndimage.distance_transform_edt(regions == 0, SPACING, return_indices=True)
    regions = np.where(away <= REACH, regions[tuple(nearest)], 0)
    found = Volume.from_array(regions.astype(np.float32), frame.affine)
    found.save(arguments.output / "regions_2mm.nii.gz", np.uint8)
    print(f"{len(cases)} subjects, {len(np.unique(regions)) - 1} of {len(known)} regions")


if __name__ == "__main__":
    main()
