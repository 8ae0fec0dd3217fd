"""A real head as DICOM series."""

from pathlib import Path

import numpy as np
from dicom_series import write_multiframe, write_series
from scipy.spatial.transform import Rotation

from brainuad.data.volume import Volume
from brainuad.inputs.scans import Scan, find_scans

SCAN = Path(__file__).parent / "files" / "ixi013_t1_4mm.nii.gz"
KINDS = {
    "slices": write_series,
    "frames": lambda folder, *args, **options: write_multiframe(folder / "x", *args, **options),
}


def head() -> Volume:
    """The middle of a real head: 26 x 28 x 30 voxels of 4 mm."""
    scan = Volume.load(SCAN)
    shift = np.eye(4)
    shift[:3, 3] = (10, 15, 15)
    return Volume.from_array(scan.array[10:36, 15:43, 15:45], scan.affine @ shift)


def oblique(volume: Volume) -> Volume:
    """The same voxels in a scanner in which the head lies turned, and elsewhere."""
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xyz", [8, -12, 15], degrees=True).as_matrix()
    turn[:3, 3] = (7.5, -31.25, 12)
    return Volume.from_array(volume.array, turn @ volume.affine)


def find(folder: Path, **options: str) -> list[Scan]:
    """Return the scans of a folder."""
    return find_scans([folder], **({"modality": "t1", "output": folder.parent / "out"} | options))
