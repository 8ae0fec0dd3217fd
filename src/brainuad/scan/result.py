"""A scored scan: its map in its own space, findings, what healthy scans say about them, and its files."""

from __future__ import annotations

import base64
import html
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from brainuad._version import __version__
from brainuad.data.places import SRI24_TO_MNI
from brainuad.data.volume import Volume
from brainuad.files import write_json
from brainuad.report.records import SCALE_MEANING
from brainuad.scan.findings import Finding
from brainuad.scan.pipeline import ScanMaps
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
_drawing = threading.Lock()  # matplotlib's fonts are shared


@dataclass(frozen=True, eq=False, repr=False)
class ScoreResult:
    """A scored scan. Arrays have the shape and axes of the scan as it is stored, and its affine.

    Attributes:
        maps: Everything on the model's grid, and the way back.
        volumes: "anomaly", "lesions" and "brain" on the scan's grid, and "reconstruction" where the model makes one.
        score: Mean of the anomaly map over the brain, on the model's grid.
        percentile: Percentage of healthy scans with a lower score, or None where the model does not know.
        threshold: Map value above which a voxel belongs to a finding, or None without calibration.
        findings: Connected regions above the threshold: those first that fewest healthy scans have the like of, where
            the calibration knows, then the largest.
        warnings: What a person should know before trusting the map.
        seconds: Time by step.
        record: The sidecar's contents so far: model, settings, calibration, findings ...
    """

    maps: ScanMaps
    volumes: dict[str, Volume]
    score: float
    percentile: float | None
    threshold: float | None
    findings: list[Finding]
    warnings: list[str]
    seconds: dict[str, float]
    record: dict[str, Any]

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
        """The brain as the model would have it, float32, about [0, 1]; None of a model that makes none."""
        volume = self.volumes.get("reconstruction")
        return None if volume is None else volume.file_axes()

    @property
    def image(self) -> np.ndarray:
        """The scan as the model saw it, float32, the brain in [0, 1]."""
        return self.maps.to_native(self.maps.placed.image).file_axes()

    @property
    def brain(self) -> np.ndarray:
        """Bool brain mask."""
        return self.volumes["brain"].file_axes() > 0.5

    @property
    def brain_source(self) -> str:
        """How the brain was found: "given", "extracted" (the scan came without skull) or "deepbet"."""
        return self.maps.brain.source

    @property
    def affine(self) -> np.ndarray:
        """``(4, 4)`` float64, voxel indices to scanner mm."""
        return np.asarray(self.maps.scan.header.get_best_affine(), dtype=np.float64)

    @property
    def alignment(self) -> float:
        """Correlation of the registered scan with the atlas; below 0.5 a person should look."""
        return self.maps.placed.alignment

    def __repr__(self) -> str:
        parts = [f"score={self.score:.4f}", f"findings={len(self.findings)}", f"warnings={self.warnings}"]
        return f"ScoreResult({', '.join(parts)})"

    def to_frame(self) -> pd.DataFrame:
        """Return the findings as a table: a row each, by label, with the columns of ``findings.csv``.

        Volumes are in mL, places in mm: ``mni_x`` ... of MNI152, ``scanner_x`` ... of the scanner (RAS+).
        """
        import pandas as pd  # slow to import, and not needed to score

        rows = finding_rows_of(self.record | {"name": ""})
        return pd.DataFrame(rows, columns=FINDING_COLUMNS[1:]).set_index("label")

    def plot(self) -> Picture:
        """Return the picture that `save` writes: axial slices of scan, reconstruction and map, a matplotlib figure."""
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
        """Write the maps as NIfTI, a picture as PNG and all figures as JSON, as ``brainuad score`` does.

        Args:
            folder: Made if missing.
            name: What the files' names begin with.

        Returns:
            The JSON file.

        Raises:
            InputError: The folder cannot be written to, or the disk is full.
        """
        outputs = {kind: f"{name}_{kind}.nii.gz" for kind in _WRITTEN} | {"montage": f"{name}.png"}
        sidecar = Path(folder) / f"{name}.json"
        write_result(self, sidecar, outputs, {"name": name})
        return sidecar


def write_result(
    result: ScoreResult,
    sidecar: Path,
    outputs: Mapping[str, str],
    about: Mapping[str, Any],
    lesion: Volume | None = None,
    also: Callable[[], dict[str, str]] = dict,
) -> dict[str, Any]:
    """Write a scored scan's files, its sidecar last: where that is, the rest is complete.

    Args:
        result: What to write.
        sidecar: The JSON file; the others go beside it.
        outputs: File name by content: "anomaly", "lesions", "reconstruction", "brain", "montage", and "scan" where
            the scan itself is wanted too.
        about: Further entries of the sidecar, or other values of what is in it: name, scan, lesion_mask.
        lesion: Ground truth for the picture, above 0.5 in lesions, on any grid of the scanner's space.
        also: Writes what is made of the maps, once they are there, and returns its names by content.

    Returns:
        What the sidecar holds.

    Raises:
        InputError: The folder cannot be written to, or the disk is full.
    """
    clock = time.perf_counter()
    sidecar.unlink(missing_ok=True)
    outputs = dict(outputs)
    saved = {
        kind: (result.volumes[kind], dtype) for kind, dtype in _WRITTEN.items() if kind in result.volumes
    }
    for kind in _WRITTEN.keys() - saved.keys():  # none of another model must pass for this one's
        (sidecar.parent / outputs.pop(kind)).unlink(missing_ok=True)
    if "scan" in outputs:
        saved["scan"] = (result.maps.scan, np.float32)
    with ThreadPoolExecutor(
        1
    ) as pool:  # compression lets go of Python's lock, and leaves a core to the picture
        saving = [
            pool.submit(volume.save, sidecar.parent / outputs[kind], dtype)
            for kind, (volume, dtype) in saved.items()
        ]
        from brainuad.report.montage import save_montage  # matplotlib is slow to import

        with _drawing:
            save_montage(_picture(result, str(about["name"]), lesion), sidecar.parent / outputs["montage"])
        for written in saving:
            written.result()
    outputs |= also()
    seconds = result.seconds | {"write": round(time.perf_counter() - clock, 3)}
    record = {"brainuad": __version__, "status": "done", **result.record, **about}
    record |= {"seconds": seconds, "outputs": outputs, "lesion_mask": about.get("lesion_mask")}
    write_json(sidecar, record)
    return record


def _picture(result: ScoreResult, name: str, lesion: Volume | None) -> Picture:
    from brainuad.report.montage import Overlay, montage  # matplotlib is slow to import

    maps, model, known = result.maps, result.record["model"], result.record["calibration"]
    score, anomaly = next(iter(maps.maps.items()))
    overlays, meaning = [], "the model has no calibration: no map is shown"
    if known:
        overlays = [Overlay(score, anomaly, known["first_colour"], known["full_colour"])]
        meaning = SCALE_MEANING
    to_mni = SRI24_TO_MNI @ np.linalg.inv(maps.placed.atlas_to_scan) @ maps.placed.to_scan
    x, y, _ = (size / 2 for size in maps.placed.image.shape)
    return montage(
        maps.placed.image,
        maps.reconstruction,
        overlays,
        maps.placed.mask,
        None if lesion is None else maps.to_model(lesion),
        title=f"{name} · {model['name']}",
        scale_meaning=meaning,
        height=lambda z: f"MNI z = {to_mni[2] @ [x, y, z, 1]:.0f} mm",
    )
