"""Folders of results as ``brainuad score`` writes them, made from real scans, with or without a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from matplotlib import image as mpl_image
from scipy import ndimage

from brainuad.files import sha256

REFERENCE = Path(__file__).parents[1] / "reference" / "scoring_mslub19_t1.npz"
SCALE = {
    "scans": 15, "fraction": 0.01, "threshold": 0.4, "interval": [0.38, 0.43],
    "first_colour": 0.33, "full_colour": 0.55,
    "healthy_findings": {
        "fraction": 0.01,
        "count": {"median": 6.0, "lowest": 2.0, "highest": 11.0},
        "ml": {"median": 8.25, "lowest": 1.5, "highest": 19.0},
    },
}  # fmt: skip
RARE = 3  # findings of every scan
# names and warnings that want to be markup
EVIL = "<img src=x onerror=document.title='owned'>"
SCRIPT = "</script><script>document.title='owned'</script>"


def patient() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A real scan of a patient with MS at 2 mm, its map and annotation; stored from left to right and oblique."""
    with np.load(REFERENCE) as arrays:
        volumes = {
            "scan": arrays["image"] * 900, "reconstruction": arrays["reconstruction"].clip(0, 1),
            "anomaly": arrays["median"], "brain": arrays["mask"], "lesion": arrays["lesion"],
        }  # fmt: skip
    turn = np.deg2rad(8)
    affine = np.diag([-2.0, 2.0, 2.0, 1.0])
    affine[:3, :3] = (
        np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]) @ affine[:3, :3]
    )
    affine[:3, 3] = (70.0, -60.0, 10.0)
    return volumes, affine


def save(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    kind = np.uint8 if array.dtype == bool or array.dtype.kind in "iu" else np.float32
    nib.save(nib.Nifti1Image(array.astype(kind), affine), path)


def find(anomaly: np.ndarray, threshold: float, affine: np.ndarray) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Label regions above a threshold, largest first, and measure them."""
    labels, count = ndimage.label(anomaly >= threshold, np.ones((3, 3, 3)))
    sizes = ndimage.sum_labels(np.ones(labels.shape), labels, np.arange(1, count + 1))
    ordered = np.zeros(labels.shape, np.uint8)
    ml = abs(np.linalg.det(affine[:3, :3])) / 1000
    rows = []
    for label, old in enumerate((np.argsort(-sizes, kind="stable") + 1)[: (sizes >= 8).sum()], start=1):
        region = labels == old
        ordered[region] = label
        centre = affine[:3, :3] @ np.argwhere(region).mean(0) + affine[:3, 3]
        rows.append(
            {
                "label": label, "voxels": int(region.sum()), "ml": round(float(region.sum() * ml), 3),
                "peak": float(anomaly[region].max()), "mean": float(anomaly[region].mean()),
                "centre_mm": [round(float(value), 1) for value in centre],
                "atlas_mm": [round(float(value), 1) for value in centre - np.array([1, 17, 4])],
                "mni_mm": [round(float(value), 1) for value in centre + np.array([2, -3, 5])],
                "side": "left" if centre[0] < -2 else "right" if centre[0] > 2 else "midline",
                "region": "<b>left</b> thalamus" if label == 1 else "", "healthy_alike": label - 1,
                "rare": label <= RARE,
            }
        )  # fmt: skip
    return ordered, rows


def write_scan(
    folder: Path, name: str, volumes: dict[str, np.ndarray], affine: np.ndarray, **changes: Any
) -> dict[str, Any]:
    """Write the outputs and sidecar of one scan; ``changes`` replaces parts of the sidecar, which is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    scale = changes.get("calibration", SCALE)
    labels, findings = find(volumes["anomaly"], scale["threshold"] if scale else np.inf, affine)
    files = {
        "anomaly": "_anomaly.nii.gz", "lesions": "_lesions.nii.gz",
        "reconstruction": "_reconstruction.nii.gz", "brain": "_brain.nii.gz",
    }  # fmt: skip
    for key, ending in files.items():
        save(folder / f"{name}{ending}", labels if key == "lesions" else volumes[key], affine)
    mpl_image.imsave(folder / f"{name}.png", volumes["scan"][:, ::-1, volumes["scan"].shape[2] // 2].T, cmap="gray")
    inputs = folder.parent / f"{folder.name}-inputs"
    inputs.mkdir(exist_ok=True)
    save(inputs / f"{name}.nii.gz", volumes["scan"], affine)
    if "lesion" in volumes:
        save(inputs / f"{name}_seg.nii.gz", volumes["lesion"], affine)
    sidecar = {
        "brainuad": "0.1.0", "status": "done", "name": name,
        "scan": {
            "source": str(inputs / f"{name}.nii.gz"), "kind": "nifti",
            "sha256": sha256(inputs / f"{name}.nii.gz"), "shape": list(volumes["scan"].shape),
            "spacing_mm": np.linalg.norm(affine[:3, :3], axis=0).round(3).tolist(), "orientation": "LAS",
        },
        "model": {"name": "lite-t1", "fingerprint": "0f3c", "modality": "t1"},
        "settings": {"score": "ssim_ensemble", "fpr": 0.01, "seed": 0, "device": "cpu"},
        "calibration": scale, "brain": {"source": "given", "ml": 1312.0}, "alignment": 0.71,
        "score": {"value": float(volumes["anomaly"][volumes["brain"] > 0].mean()), "percentile": 93.3},
        "warnings": [], "seconds": {"read": 0.2, "brain": 4.5, "reconstruct": 1.6}, "findings": findings,
        "outputs": {key: f"{name}{ending}" for key, ending in files.items()} | {"montage": f"{name}.png"},
        "lesion_mask": str(inputs / f"{name}_seg.nii.gz") if "lesion" in volumes else None,
    } | changes  # fmt: skip
    (folder / f"{name}.json").write_text(json.dumps(sidecar))
    return sidecar


def write_run(folder: Path, sidecars: list[dict[str, Any]], failed: dict[str, str] | None = None) -> None:
    """Write ``scores.csv`` and ``run.json``."""
    columns = "name,status,score,percentile,findings,lesion_ml,brain_ml,alignment,seconds,warnings,message"
    lines = [columns]
    for entry in sidecars:
        volume = sum(finding["ml"] for finding in entry["findings"])
        lines.append(
            f'"{entry["name"]}",done,{entry["score"]["value"]},{entry["score"]["percentile"]},'
            f"{len(entry['findings'])},{volume},1312,0.71,6.3,,"
        )
    lines += [f'"{name}",failed,,,,,,,,,"{message}"' for name, message in (failed or {}).items()]
    (folder / "scores.csv").write_text("\n".join(lines) + "\n")
    healthy = np.random.default_rng(0).normal(0.13, 0.01, 15).clip(0.1).round(4).tolist()
    run = {
        "version": "0.1.0", "model": {"name": "lite-t1", "fingerprint": "0f3c"},
        "settings": {"score": "ssim_ensemble", "fpr": 0.01}, "versions": {"torch": "2.13.0"},
        "started": "2026-11-24T02:00:00Z", "seconds": 12.0,
        "counts": {"done": len(sidecars), "failed": len(failed or {})}, "healthy_scores": healthy,
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(run))
