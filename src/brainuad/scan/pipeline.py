"""One scan through all steps: brain mask, registration, reconstruction, maps, and back to the scan's own grid."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from torch import Tensor

from brainuad.data.atlas import PlacedScan, place_scan
from brainuad.data.extract import Brain, find_brain, on_same_grid
from brainuad.data.frame import resample
from brainuad.data.volume import Volume
from brainuad.detector import SCORE, Detector, load_model
from brainuad.errors import InputError
from brainuad.evaluation import scan_score
from brainuad.scoring import postprocess


@dataclass(frozen=True, eq=False)
class ScanMaps:
    """A scan and its anomaly maps on the model's grid.

    Attributes:
        scan: The scan as it was read.
        brain: The brain in the scan.
        placed: The scan on the model's grid.
        reconstructions: ``(S, X, Y, Z)`` float32 on the model's grid.
        maps: Anomaly map by score, ``(X, Y, Z)`` float32 each, post-processed, 0 outside the brain.
        seconds: Time by step.
    """

    scan: Volume
    brain: Brain
    placed: PlacedScan
    reconstructions: np.ndarray
    maps: dict[str, np.ndarray]
    seconds: dict[str, float]

    def to_native(self, array: Any) -> np.ndarray:
        """Bring ``(X, Y, Z)`` values on the model's grid back to the scan's grid, 0 outside its brain.

        Returns:
            ``scan.array.shape`` float32, in canonical axes; ``scan.with_array(it).save(path)`` writes it.
        """
        matrix = np.linalg.inv(self.placed.to_scan) @ self.scan.affine
        native = resample(np.asarray(array, dtype=np.float32), matrix, self.scan.array.shape, order=1)
        return native * self.brain.mask


def map_scan(
    scan: Volume,
    detector: Detector,
    *,
    brain_mask: Volume | None = None,
    scores: Iterable[str] = (SCORE,),
    seed: int = 0,
) -> ScanMaps:
    """Take one scan through all steps but the way back; scoring and calibration both begin here.

    Args:
        scan: The scan, with or without skull.
        detector: The model.
        brain_mask: Above 0 in the brain, on the scan's grid.
        scores: Entries of the score registry.
        seed: Seeds registration and reconstruction.

    Raises:
        ValueError: The scan or its mask cannot be used.
    """
    seconds: dict[str, float] = {}
    clock = time.perf_counter()

    def lap(step: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        seconds[step], clock = round(now - clock, 3), now

    brain = find_brain(scan, brain_mask, modality=detector.modality)
    lap("brain")
    placed = place_scan(scan, brain.mask, detector.data_config, seed=seed)
    lap("place")
    reconstructions = detector.reconstruct(placed.image, seed)
    lap("reconstruct")
    maps = detector.compare(placed.image, reconstructions, placed.mask, scores)
    cleaned = {name: postprocess(anomaly, placed.mask).numpy() for name, anomaly in maps.items()}
    lap("score")
    return ScanMaps(scan, brain, placed, reconstructions.numpy(), cleaned, seconds)


@dataclass(frozen=True, eq=False)
class ScoreResult:
    """A scored scan. Volumes have the shape and axes of the scan as it is stored, and its affine.

    Attributes:
        anomaly: Anomaly map, float32 in [0, 2], 0 outside the brain; higher is less like a healthy brain.
        reconstruction: The brain as the model would have it, float32, about [0, 1].
        image: The scan as the model saw it, on the scale of the reconstruction.
        brain: Bool brain mask.
        affine: ``(4, 4)``, voxel indices to scanner mm.
        score: Mean of the anomaly map over the brain, on the model's grid.
        alignment: Correlation of the registered scan with the atlas; below 0.5 a person should look.
    """

    anomaly: np.ndarray
    reconstruction: np.ndarray
    image: np.ndarray
    brain: np.ndarray
    affine: np.ndarray
    score: float
    alignment: float


def score(
    image: str | Path | nib.Nifti1Pair | np.ndarray | Tensor,
    model: Detector | str | Path,
    *,
    brain_mask: str | Path | nib.Nifti1Pair | np.ndarray | Tensor | None = None,
    affine: np.ndarray | None = None,
    seed: int = 0,
) -> ScoreResult:
    """Score one scan: find the brain, register it, reconstruct it, compare, and bring the map back.

    Args:
        image: Path of a NIfTI file, nibabel image, or ``(X, Y, Z)`` array or tensor, in any orientation and
            voxel size.
        model: A detector, or what :func:`load_model` takes.
        brain_mask: The same kinds, on the scan's grid, above 0 in the brain. Without it the scan must be
            brain-extracted: its background is taken for not brain.
        affine: ``(4, 4)`` to scanner mm (RAS+), for an array or tensor.
        seed: Seeds registration and reconstruction: the same seed gives the same map.

    Raises:
        InputError: The scan or mask cannot be read or used, or an array came without its affine.
    """
    detector = model if isinstance(model, Detector) else load_model(model)
    name = _name_of(image)
    scan = _as_volume(image, affine, name)
    given = None
    if brain_mask is not None:
        given = _as_volume(brain_mask, _scan_affine(scan), _name_of(brain_mask, "brain mask"))
        if not on_same_grid(given, scan):
            fault = f"lies on another grid than the scan ({given.array.shape}, {scan.array.shape})"
            raise InputError(_name_of(brain_mask, "brain mask"), fault, "Resample it")
    try:
        return _score(scan, given, detector, seed)
    except (ValueError, RuntimeError) as error:
        fault = " ".join(str(error).split())  # ITK's and torch's messages span lines
        raise InputError(name, fault, "Look at the scan; give a brain mask") from error


def _score(scan: Volume, given: Volume | None, detector: Detector, seed: int) -> ScoreResult:
    found = map_scan(scan, detector, brain_mask=given, seed=seed)
    anomaly = found.maps[SCORE]

    def to_file(array: Any) -> np.ndarray:
        return scan.with_array(found.to_native(array)).file_axes()

    return ScoreResult(
        anomaly=to_file(anomaly),
        reconstruction=to_file(found.reconstructions.mean(0)),
        image=to_file(found.placed.image),
        brain=scan.with_array(found.brain.mask).file_axes() > 0.5,
        affine=_scan_affine(scan),
        score=scan_score(anomaly, found.placed.mask),
        alignment=found.placed.alignment,
    )


def _scan_affine(scan: Volume) -> np.ndarray:
    return np.asarray(scan.header.get_best_affine(), dtype=np.float64)


def _name_of(source: Any, otherwise: str = "image") -> str:
    return str(source) if isinstance(source, str | Path) else otherwise


def _as_volume(source: Any, affine: np.ndarray | None, name: str) -> Volume:
    if isinstance(source, str | Path):
        return Volume.load(source)
    if isinstance(source, nib.Nifti1Pair):
        return Volume.from_image(source, name=name)
    if not isinstance(source, np.ndarray | Tensor):
        kinds = "a path, a NIfTI image, an array or a tensor"
        raise InputError(name, f"is a {type(source).__name__}", f"Give {kinds}")
    if affine is None:
        remedy = "An array needs the 4 x 4 matrix from its voxels to scanner mm"
        raise InputError("affine", "is missing", remedy)
    array = source.detach().cpu().numpy() if isinstance(source, Tensor) else source
    return Volume.from_array(array, np.asarray(affine, dtype=np.float64))
