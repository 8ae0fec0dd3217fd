"""One scan through all steps: brain mask, registration, reconstruction, maps, and back to the scan's own grid."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from brainuad.data.atlas import PlacedScan, place_scan
from brainuad.data.extract import Brain, find_brain
from brainuad.data.frame import resample, resample_map
from brainuad.data.intensity import on_zero
from brainuad.data.volume import Volume
from brainuad.detector import Detector
from brainuad.devices import device_told_from_scan

_NEXT = {"brain": "placing", "place": "reconstruct", "reconstruct": "score"}  # what follows a step


@dataclass(frozen=True, eq=False)
class ScanMaps:
    """A scan and its anomaly maps on the model's grid.

    Attributes:
        scan: The scan as it was read.
        brain: The brain in the scan.
        placed: The scan on the model's grid.
        reconstruction: ``(X, Y, Z)`` float32 on the model's grid; None of a model that makes none.
        raw: Anomaly map by score, ``(X, Y, Z)`` float32 each, 0 outside the brain.
        maps: The same, post-processed.
        seconds: Time by step.
    """

    scan: Volume
    brain: Brain
    placed: PlacedScan
    reconstruction: np.ndarray | None
    raw: dict[str, np.ndarray]
    maps: dict[str, np.ndarray]
    seconds: dict[str, float]

    def to_native(self, array: Any) -> Volume:
        """Bring ``(X, Y, Z)`` values on the model's grid back to the scan's grid, 0 outside its brain."""
        mask = self.brain.mask
        box = ndimage.find_objects(mask.astype(np.uint8))[0]  # a third of a scan
        from_box = np.eye(4)
        from_box[:3, 3] = [part.start for part in box]
        matrix = np.linalg.inv(self.placed.to_scan) @ self.scan.affine @ from_box
        native = np.zeros(mask.shape, dtype=np.float32)
        native[box] = resample_map(np.asarray(array, dtype=np.float32), matrix, mask[box].shape) * mask[box]
        return self.scan.with_array(native)

    def to_model(self, volume: Volume) -> np.ndarray:
        """Bring labels on the scan's grid, above 0.5 where set, onto the model's grid: ``(X, Y, Z)`` bool."""
        matrix = np.linalg.inv(volume.affine) @ self.placed.to_scan
        share = resample(volume.inside, matrix, self.placed.mask.shape, order=1)
        return share > 0.5


def map_scan(
    scan: Volume,
    detector: Detector,
    *,
    brain_mask: Volume | None = None,
    scores: Iterable[str] | None = None,
    seed: int = 0,
    stage: Callable[[str], None] = lambda name: None,
) -> ScanMaps:
    """Take one scan through all steps but the way back; scoring and calibration both begin here.

    Args:
        scan: The scan, with or without skull.
        detector: The model.
        brain_mask: Above 0.5 in the brain, on the scan's grid.
        scores: As :meth:`Detector.maps` takes them; by default the model's default.
        seed: Seeds registration and reconstruction.
        stage: Called with the name of each step as it begins: "brain", "placing", "reconstruct", "score".

    Raises:
        ValueError: The scan or its mask cannot be used.
        InputError: The model cannot give a score.
        DeviceError: The device does not work any more.
    """
    seconds: dict[str, float] = {}
    clock = time.perf_counter()

    def lap(step: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        seconds[step], clock = round(now - clock, 3), now
        if step in _NEXT:
            stage(_NEXT[step])

    stage("brain")
    above_zero = scan.with_array(on_zero(scan.array))
    brain = find_brain(above_zero, brain_mask, modality=detector.modality)
    lap("brain")
    placed = place_scan(above_zero, brain.mask, detector.data_config, seed=seed)
    lap("place")
    with device_told_from_scan(detector.device):
        maps = detector.maps(placed.image, placed.mask, scores or [detector.default_score], seed, lap=lap)
        raw, final = (
            {name: anomaly.cpu().numpy() for name, anomaly in found.items()} for found in (maps.raw, maps.final)
        )
    lap("score")
    reconstruction = None if maps.reconstruction is None else maps.reconstruction.numpy()
    return ScanMaps(scan, brain, placed, reconstruction, raw, final, seconds)
