"""The result of scoring a scan: maps in its own space, findings, and the files that hold them."""

from __future__ import annotations

import base64
import html
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from brainuad.data.atlas import PlacedScan
from brainuad.data.regions import SRI24_TO_MNI
from brainuad.data.volume import Volume
from brainuad.detector import Maps
from brainuad.errors import InputError
from brainuad.files import write_bytes, write_json
from brainuad.record import SCALE_MEANING, Finding, Record, to_json
from brainuad.scan.table import FINDING_COLUMNS, finding_rows_of

if TYPE_CHECKING:
    import pandas as pd

    from brainuad.report.montage import Picture

_WRITTEN: dict[str, type[np.generic]] = {
    "anomaly": np.float32,
    "lesions": np.uint8,
    "reconstruction": np.float32,
    "brain": np.uint8,
}
_SHOWN = ["region", "side", "healthy_alike", "healthy_scans", "rare", "ml", "peak"]
_drawing = threading.Lock()  # matplotlib's fonts are shared by all threads


@dataclass(frozen=True, eq=False, repr=False)
class ScoreResult:
    """A scored scan. Its arrays have the shape, axes and affine of the scan as it is stored.

    Attributes:
        placed: The scan on the model's grid, and the way back to its own.
        maps: Reconstruction and anomaly maps on the model's grid.
        volumes: "anomaly", "lesions" and "brain" on the scan's grid, and "reconstruction" where the model makes one.
        record: What the sidecar will hold: model, settings, calibration, findings ...
    """

    placed: PlacedScan
    maps: Maps
    volumes: dict[str, Volume]
    record: Record

    @property
    def score(self) -> float:
        """Mean of the anomaly map over the brain, on the model's grid."""
        return self.record.score.value

    @property
    def percentile(self) -> float | None:
        """Percentage of healthy scans with a lower score, or None if the score was not calibrated."""
        return self.record.score.percentile

    @property
    def threshold(self) -> float | None:
        """Map value above which a voxel belongs to a finding, or None without calibration."""
        scale = self.record.calibration
        return None if scale is None else scale.threshold

    @property
    def findings(self) -> list[Finding]:
        """Connected regions above the threshold, in the order of `brainuad.record.Record`."""
        return self.record.findings

    @property
    def warnings(self) -> list[str]:
        """What a person should know before trusting the map."""
        return self.record.warnings

    @property
    def seconds(self) -> dict[str, float]:
        """Time by step."""
        return self.record.seconds

    @property
    def anomaly(self) -> np.ndarray:
        """Anomaly map, float32, 0 outside the brain; higher is less like a healthy brain."""
        return self.volumes["anomaly"].file_axes()

    @property
    def lesions(self) -> np.ndarray:
        """Label of the finding that a voxel belongs to, uint8, 0 elsewhere."""
        return self.volumes["lesions"].file_axes().astype(np.uint8)

    @property
    def reconstruction(self) -> np.ndarray | None:
        """The brain as the model reconstructs it, float32, about [0, 1]; None for a model without reconstruction."""
        volume = self.volumes.get("reconstruction")
        return None if volume is None else volume.file_axes()

    @property
    def image(self) -> np.ndarray:
        """The model's input, float32, the brain in [0, 1]."""
        return self.placed.back(self.placed.image).file_axes()

    @property
    def brain(self) -> np.ndarray:
        """Brain mask, bool."""
        return self.volumes["brain"].file_axes() > 0.5

    @property
    def brain_source(self) -> str:
        """Where the brain mask came from: "given", "extracted" (the scan had no skull) or "deepbet"."""
        return self.placed.brain.source

    @property
    def affine(self) -> np.ndarray:
        """``(4, 4)`` float64, voxel indices to scanner mm."""
        return np.asarray(self.placed.scan.header.get_best_affine(), dtype=np.float64)

    @property
    def alignment(self) -> float:
        """Correlation of the registered scan with the atlas; below 0.5 the registration should be checked by eye."""
        return self.placed.alignment

    def __repr__(self) -> str:
        parts = [f"score={self.score:.4f}", f"findings={len(self.findings)}", f"warnings={self.warnings}"]
        return f"ScoreResult({', '.join(parts)})"

    def to_frame(self) -> pd.DataFrame:
        """Return the findings as a table: a row each, by label, with the columns of ``findings.csv``.

        Volumes are in mL, centres in mm: ``mni_x`` ... in MNI152, ``scanner_x`` ... in the scanner (RAS+).
        """
        import pandas as pd  # slow to import, and not needed to score

        rows = finding_rows_of(self.record)
        return pd.DataFrame(rows, columns=FINDING_COLUMNS[1:]).set_index("label")

    def plot(self) -> Picture:
        """Return the picture that `save` writes, a matplotlib figure: axial slices of scan, reconstruction and map."""
        with _drawing:
            return _picture(self, "scan", None)

    def _repr_html_(self) -> str:
        """Return picture, figures, warnings and findings for a notebook."""
        picture = base64.b64encode(self.plot()._repr_png_()).decode("ascii")
        beside = "" if self.percentile is None else f", higher than {self.percentile:.0f} % of healthy scans"
        lines = [f"score {self.score:.4f}{beside}; {len(self.findings)} findings", *self.warnings]
        words = "".join(f"<p>{html.escape(line)}</p>" for line in lines)
        table = self.to_frame()[_SHOWN].to_html(na_rep="") if self.findings else ""
        return f'<img alt="axial slices" src="data:image/png;base64,{picture}">{words}{table}'

    def save(self, folder: str | Path, name: str) -> Path:
        """Write the maps as NIfTI, a picture as PNG and all figures as JSON: the files of ``brainuad score``.

        Args:
            folder: Made if missing.
            name: Prefix of the files' names.

        Returns:
            The JSON file.

        Raises:
            InputError: The folder cannot be written to, or the disk is full.
        """
        outputs = {kind: f"{name}_{kind}.nii.gz" for kind in _WRITTEN} | {"montage": f"{name}.png"}
        sidecar = Path(folder) / f"{name}.json"
        write_result(replace(self, record=replace(self.record, name=name)), sidecar, outputs)
        return sidecar


def write_result(
    result: ScoreResult,
    sidecar: Path,
    outputs: Mapping[str, str],
    lesion: Volume | None = None,
    also: Callable[[], dict[str, str]] = dict,
) -> Record:
    """Write a scored scan's files, its sidecar last: where that is, the rest is complete.

    Args:
        result: What to write.
        sidecar: The JSON file; the others go beside it.
        outputs: File name by content: "anomaly", "lesions", "reconstruction", "brain", "montage", and "scan" where
            the scan itself is wanted too.
        lesion: Ground truth for the picture, above 0.5 in lesions, on any grid of the scanner's space.
        also: Called when the maps are written, to write files made from them; returns their names by content.

    Returns:
        The contents of the sidecar.

    Raises:
        InputError: The folder cannot be written to, or the disk is full.
    """
    clock = time.perf_counter()
    sidecar.unlink(missing_ok=True)
    outputs = dict(outputs)
    saved = {kind: (result.volumes[kind], dtype) for kind, dtype in _WRITTEN.items() if kind in result.volumes}
    for kind in _WRITTEN.keys() - saved.keys():  # a reconstruction of another model must not pass for this one's
        (sidecar.parent / outputs.pop(kind)).unlink(missing_ok=True)
    if "scan" in outputs:
        saved["scan"] = (result.placed.scan, np.float32)

    with ThreadPoolExecutor() as pool:  # compression lets go of Python's lock, and leaves a core to the picture
        saving = [
            pool.submit(volume.save, sidecar.parent / outputs[kind], dtype) for kind, (volume, dtype) in saved.items()
        ]
        with _drawing:
            picture = _picture(result, result.record.name, lesion).png()
        try:
            for written in saving:
                written.result()
        except InputError:  # all or none, whichever was first to find the disk full
            wait(saving)
            for kind in saved:
                with suppress(OSError):
                    (sidecar.parent / outputs[kind]).unlink(missing_ok=True)
            raise
    write_bytes(sidecar.parent / outputs["montage"], picture)
    outputs |= also()
    seconds = result.seconds | {"write": round(time.perf_counter() - clock, 3)}
    record = replace(result.record, seconds=seconds, outputs=outputs)
    write_json(sidecar, to_json(record))
    return record


def _picture(result: ScoreResult, name: str, lesion: Volume | None) -> Picture:
    from brainuad.report.montage import Overlay, mni_height, montage  # matplotlib is slow to import

    placed, scale = result.placed, result.record.calibration
    score, anomaly = next(iter(result.maps.final.items()))
    overlays, meaning = [], "the model has no calibration: no map is shown"
    if scale:
        overlays = [Overlay(score, anomaly, scale.first_colour, scale.full_colour)]
        meaning = SCALE_MEANING
    to_mni = SRI24_TO_MNI @ placed.placement.affine
    return montage(
        placed.image,
        result.maps.reconstruction,
        overlays,
        placed.mask,
        None if lesion is None else placed.placement.sample_outline(lesion),
        title=f"{name} · {result.record.model.name}",
        scale_meaning=meaning,
        height=lambda z: mni_height(to_mni, placed.image.shape, z),
    )
