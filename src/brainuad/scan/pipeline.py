"""One scan through all steps from the file to its anomaly maps on the model's grid."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from brainuad.data.atlas import PlacedScan, place_scan
from brainuad.data.volume import Volume
from brainuad.detector import Detector, Maps
from brainuad.devices import device_told_from_scan

_NEXT = {"brain": "placing", "place": "reconstruct", "reconstruct": "score"}  # what follows a step


def map_scan(
    scan: Volume,
    detector: Detector,
    *,
    brain_mask: Volume | None = None,
    scores: Iterable[str] | None = None,
    seed: int = 0,
    stage: Callable[[str], None] = lambda name: None,
) -> tuple[PlacedScan, Maps, dict[str, float]]:
    """Take one scan through all steps but the way back; scoring and calibration both begin here.

    Args:
        scan: The scan, with or without skull.
        detector: The model.
        brain_mask: Above 0.5 in the brain, on the scan's grid.
        scores: As :meth:`Detector.maps` takes them; by default the model's default.
        seed: Seeds registration and reconstruction.
        stage: Called with the name of each step as it begins: "brain", "placing", "reconstruct", "score".

    Returns:
        The scan on the model's grid, its maps there, and seconds by step.

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
    placed = place_scan(scan, detector.data_config, brain_mask=brain_mask, seed=seed, lap=lap)
    with device_told_from_scan(detector.device):
        maps = detector.maps(placed.image, placed.mask, scores or [detector.scores.default], seed, lap=lap)
    lap("score")
    return placed, maps, seconds
