"""Find the fixed affine from SRI24 to MNI152 that findings are located with, and how exact it is.

    python benchmarks/register_mni.py mni2009c_t2_brain_1mm.nii.gz

The template is ICBM 2009c asymmetric, brain-extracted. It is registered as every scan is, with several seeds, as it is
and from other places. Prints the mean of all, for ``brainuad.data.regions``, how far each lies from the mean in the
brain, and where the centres of deep structures come to lie beside those of the AAL atlas (Tzourio-Mazoyer et al. 2002).
"""

from __future__ import annotations

import sys

import numpy as np

from brainuad.data.placement import atlas_brain
from brainuad.data.regions import atlas_regions, region_names
from brainuad.data.registration import register_to_atlas
from brainuad.data.volume import Volume

SEEDS = 2
AAL = {  # centres of mass in MNI mm, left and right
    "hippocampus": ((-25.0, -20.7, -10.1), (29.2, -19.8, -10.3)),
    "amygdala": ((-23.3, -0.7, -17.1), (27.3, 0.6, -17.5)),
    "caudate": ((-11.5, 11.0, 9.2), (14.8, 12.1, 9.4)),
    "putamen": ((-23.9, 3.9, 2.4), (27.8, 4.9, 2.5)),
    "pallidum": ((-17.8, 0.0, 0.2), (21.2, 0.2, 0.2)),
    "thalamus": ((-10.9, -17.6, 8.0), (13.0, -17.6, 8.1)),
}


def moved(degrees: float, mm: float) -> np.ndarray:
    """Return a turn about all axes and a shift."""
    matrix = np.eye(4)
    for first, second in ((0, 1), (1, 2), (0, 2)):
        turn = np.eye(4)
        cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        turn[first, first] = turn[second, second] = cosine
        turn[first, second], turn[second, first] = -sine, sine
        matrix = matrix @ turn
    matrix[:3, 3] = mm
    return matrix


def main() -> None:
    template = Volume.load(sys.argv[1])
    places = [moved(0, 0), moved(5, 8), moved(-5, -8)]
    found = []
    for place in places:
        elsewhere = Volume.from_array(template.array, place @ template.affine)
        found += [np.linalg.inv(place) @ register_to_atlas(elsewhere, seed=seed) for seed in range(SEEDS)]
    mean = np.mean(found, axis=0)
    print("SRI24 to MNI152:")
    print(np.array2string(mean[:3], precision=4, suppress_small=True, separator=", "))
    brain = atlas_brain()
    points = np.argwhere(brain.array > 0)[::50] @ brain.affine[:3, :3].T + brain.affine[:3, 3]
    for number, matrix in enumerate(found):
        apart = np.linalg.norm(points @ (matrix - mean)[:3, :3].T + (matrix - mean)[:3, 3], axis=1)
        place, seed = divmod(number, SEEDS)
        print(f"place {place}, seed {seed}: {apart.mean():.2f} mm from it in the mean, {apart.max():.2f} at most")
    regions, errors = atlas_regions(), []
    labels = {name: label for label, name in region_names().items()}
    for structure, sides in AAL.items():
        for side, theirs in zip(("left", "right"), sides, strict=True):
            inside = np.argwhere(regions.array == labels[f"{side} {structure}"])
            centre = mean @ regions.affine @ [*inside.mean(0), 1]
            errors.append(np.linalg.norm(centre[:3] - theirs))
            print(f"{side} {structure}: {centre[:3].round(1)}, AAL {theirs}: {errors[-1]:.1f} mm")
    print(f"mean {np.mean(errors):.1f} mm")


if __name__ == "__main__":
    main()
