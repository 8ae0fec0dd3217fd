"""The same head, placed and stored otherwise, must give the same map in space.

Every raw scan (skull on) is scored as it is, and as copies that are rigidly moved, stored in other axes, resampled to
anisotropic voxels, and resampled to an oblique grid. Each copy's map is brought back to where the head was, on the
first scan's grid, and correlated with the first map inside the brain.

python benchmarks/geometry.py SCAN.nii.gz... [--model lite-t1] [--output geometry.csv]
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from brainuad.data.placement import resample
from brainuad.data.volume import Volume
from brainuad.detector import load_model
from brainuad.scan import score_scan


def rigid(angles: tuple[float, float, float], shift: tuple[float, float, float], centre: np.ndarray) -> np.ndarray:
    """Return a ``(4, 4)`` turn about ``centre`` by angles in degrees, then a shift in mm."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    matrix[:3, 3] = centre + shift - matrix[:3, :3] @ centre
    return matrix


def stored_as(volume: Volume, axes: str) -> Volume:
    """Return the same scan with its array in other axes."""
    image = nib.Nifti1Image(volume.array, volume.affine)
    turn = nib.orientations.ornt_transform(nib.io_orientation(volume.affine), nib.orientations.axcodes2ornt(axes))
    return Volume.from_image(image.as_reoriented(turn))


def on_grid(volume: Volume, spacing: tuple[float, float, float], turn: np.ndarray) -> Volume:
    """Return a scan resampled (cubic) to voxels of ``spacing`` mm, its axes turned by ``turn`` about the middle."""
    extent = np.asarray(volume.array.shape) * volume.spacing
    # room for the corners of a turned field of view
    shape = tuple(int(np.ceil(length * (1.0 if np.allclose(turn, np.eye(4)) else 1.15) / step))
                  for length, step in zip(extent, spacing, strict=True))  # fmt: skip
    centre = volume.affine @ [*((np.asarray(volume.array.shape) - 1) / 2), 1]
    affine = turn[:3, :3] @ np.diag(spacing)
    full = np.eye(4)
    full[:3, :3] = affine
    full[:3, 3] = centre[:3] - affine @ ((np.asarray(shape) - 1) / 2)
    array = np.maximum(resample(volume.array, np.linalg.inv(volume.affine) @ full, shape, order=3), 0)
    return Volume.from_array(array, full)


def copies(volume: Volume) -> dict[str, tuple[Volume, np.ndarray]]:
    """Return copies by name, each with the ``(4, 4)`` motion of the head in scanner mm."""
    still = np.eye(4)
    centre = (volume.affine @ [*ndimage.center_of_mass(volume.array), 1])[:3]
    moved = rigid((12, -9, 15), (14, -10, 18), centre)
    tilt = rigid((20, 5, -12), (0, 0, 0), np.zeros(3))
    # the head turned in front of a scanner that stands still: another array in the same field of view
    in_field = resample(volume.array, np.linalg.inv(volume.affine) @ np.linalg.inv(moved) @ volume.affine,
                        volume.array.shape, order=3)  # fmt: skip
    return {
        "other axes (LAI)": (stored_as(volume, "LAI"), still),
        "moved in the field of view": (volume.with_array(np.maximum(in_field, 0)), moved),
        "1 x 1 x 4 mm": (on_grid(volume, (1.0, 1.0, 4.0), still), still),
        "oblique grid": (on_grid(volume, (2.0, 2.0, 2.0), tilt), still),
        "moved, oblique, 1.2 x 1.2 x 3 mm, ASL": (
            stored_as(on_grid(Volume.from_array(volume.array, moved @ volume.affine), (1.2, 1.2, 3.0), tilt), "ASL"),
            moved,
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scans", nargs="+", type=Path)
    parser.add_argument("--model", default="lite-t1")
    parser.add_argument("--output", type=Path, default=Path("geometry.csv"))
    given = parser.parse_args()
    detector = load_model(given.model)
    rows: list[dict[str, object]] = []
    for path in given.scans:
        first = Volume.load(path)
        reference = score_scan(first, detector)
        expected, brain = (reference.volumes[kind].array for kind in ("anomaly", "brain"))
        for name, (copy, motion) in copies(first).items():
            started = time.perf_counter()
            result = score_scan(copy, detector)
            seconds = time.perf_counter() - started
            # where a voxel of the first scan lies in the copy
            matrix = np.linalg.inv(copy.affine) @ motion @ first.affine
            back, mask = (
                ndimage.affine_transform(
                    result.volumes[kind].array, matrix[:3, :3], matrix[:3, 3], output_shape=first.array.shape, order=1
                )
                for kind in ("anomaly", "brain")
            )
            both = (brain > 0) | (mask > 0.5)
            row = {
                "scan": path.name.split(".")[0],
                "copy": name,
                "correlation": round(float(np.corrcoef(expected[both], back[both])[0, 1]), 4),
                "brain_dice": round(
                    float(2 * ((brain > 0) & (mask > 0.5)).sum() / (brain.sum() + (mask > 0.5).sum())), 4
                ),
                "score": round(result.score, 4),
                "score_as_it_is": round(reference.score, 4),
                "alignment": round(result.alignment, 3),
                "alignment_as_it_is": round(reference.alignment, 3),
                "seconds": round(seconds, 1),
            }
            rows.append(row)
            with given.output.open("w", newline="") as handle:  # after every copy: a run takes long
                writer = csv.DictWriter(handle, rows[0])
                writer.writeheader()
                writer.writerows(rows)
            print(*row.values(), sep="\t", flush=True)


if __name__ == "__main__":
    main()
