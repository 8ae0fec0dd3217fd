"""Scoring from Python: a scan in any form in, a result out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from torch import Tensor

from brainuad.data.extract import on_same_grid
from brainuad.data.volume import Volume
from brainuad.detector import Detector, load_model
from brainuad.errors import InputError, remedy_of
from brainuad.files import sha256
from brainuad.inputs.masks import BRAIN, mask_for
from brainuad.inputs.scans import Scan, open_scan
from brainuad.scan.pipeline import score_scan
from brainuad.scan.result import ScoreResult

Image = Any  # what `score` says it takes: packages that are not needed otherwise have some of its kinds


def score(
    image: Image,
    model: Detector | str | Path,
    *,
    brain_mask: Image | None = None,
    affine: np.ndarray | None = None,
    score: str | None = None,
    seed: int = 0,
) -> ScoreResult:
    """Score one scan: find the brain, register it, reconstruct it, compare, and bring the map back.

    Args:
        image: Path of a NIfTI file, nibabel image, TorchIO image, MONAI ``MetaTensor``, or ``(X, Y, Z)`` array or
            tensor, in any orientation and voxel size. Images of TorchIO and MONAI have one channel.
        model: A detector, or what `load_model` takes.
        brain_mask: The same kinds, on the scan's grid, above 0.5 in the brain. Without it the brain is what is not
            background in a brain-extracted scan, and what deepbet finds in a T1 scan of the whole head.
        affine: ``(4, 4)`` to scanner mm (RAS+), for an array or tensor that has none itself.
        score: As ``--score`` of the command line: by default rarity in healthy brains over several scales, or the
            model's own map where it makes one; "paper" is the paper's SSIM ensemble.
        seed: Seeds registration and reconstruction: the same seed gives the same map.

    Raises:
        InputError: The scan or mask cannot be read or used, an array came without a 4 x 4 affine, an affine came with
            an image that has its own, or the model does not know the score.
    """
    detector = model if isinstance(model, Detector) else load_model(model)
    score = detector.scores.called(score)
    detector.scores.check(score)
    name = _name_of(image)
    own_affine = _affine_of(image)
    if affine is not None and (own_affine is not None or isinstance(image, str | Path)):
        raise InputError("affine", "is given, but the image has its own", "Leave it out, or give an array")
    scan = _as_volume(image, own_affine if affine is None else affine, name)
    scan.check_scan(name)
    given = None
    if brain_mask is not None:
        mask_name, own = _name_of(brain_mask, "brain mask"), _affine_of(brain_mask)
        given = _as_volume(brain_mask, scan.header.get_best_affine() if own is None else own, mask_name)
        check_same_grid(given, scan, mask_name)
    try:
        result = score_scan(scan, detector, brain_mask=given, score=score, seed=seed)
    except (ValueError, RuntimeError) as error:
        raise unusable(name, error) from error
    if isinstance(image, str | Path):
        scan_source = replace(result.record.scan, source=str(Path(image).absolute()), sha256=sha256(image))
        result = replace(result, record=replace(result.record, scan=scan_source))
    return result


def brain_mask_of(scan: Scan, masks: Path | None) -> Path | None:
    """Return the brain mask of a scan: a file, or that in a folder of masks; None where none was given.

    Raises:
        InputError: The folder holds none for the scan, or several.
    """
    if masks is None:
        return None
    mask = mask_for(scan.source, masks, BRAIN)
    if mask is None:
        remedy = "Name masks after their scans, or leave out the masks"
        raise InputError(masks, f"holds no brain mask for {scan.source.name}", remedy)
    return mask


def open_with_brain(scan: Scan, mask: Path | None) -> tuple[Volume, Volume | None]:
    """Open a scan and its brain mask.

    Raises:
        InputError: One of them cannot be used, or they lie on different grids.
    """
    volume = open_scan(scan)
    if mask is None:
        return volume, None
    brain = Volume.load(mask)
    check_same_grid(brain, volume, mask)
    return volume, brain


def check_same_grid(mask: Volume, scan: Volume, name: str | Path) -> None:
    """Check that a mask has its scan's shape and place.

    Raises:
        InputError: It has not.
    """
    if not on_same_grid(mask, scan):
        if mask.array.shape != scan.array.shape:
            fault = f"lies on another grid than the scan ({mask.array.shape}, {scan.array.shape})"
        else:
            fault = f"lies up to {mask.distance_to(scan):.1f} mm from its scan"
        raise InputError(name, fault, "Resample it onto the scan's grid")


def unusable(name: str | Path, error: Exception) -> InputError:
    """Return the user's message for what the steps of scoring could not do with a scan."""
    fault = " ".join(str(error).split())  # ITK's and torch's messages span lines
    return InputError(name, fault, remedy_of(error, "Look at the scan; give a brain mask, or another one"))


def _name_of(source: Any, otherwise: str = "image") -> str:
    return str(source) if isinstance(source, str | Path) else otherwise


def _affine_of(source: Any) -> Any | None:
    """Return the affine that a nibabel or TorchIO image or a ``MetaTensor`` has; None of anything else."""
    return getattr(source, "affine", None)


def _as_volume(source: Any, affine: Any | None, name: str) -> Volume:
    if isinstance(source, str | Path):
        return Volume.load(source)
    if isinstance(source, nib.Nifti1Pair):
        return Volume.from_image(source, name=name)
    if not isinstance(source, np.ndarray | Tensor):
        held = getattr(source, "data", None)  # a TorchIO image holds (C, X, Y, Z)
        if affine is None or not isinstance(held, Tensor):
            kinds = "a path, a NIfTI or TorchIO image, an array or a tensor"
            raise InputError(name, f"is a {type(source).__name__}", f"Give {kinds}")
        source = held
    matrix = _matrix(affine)
    array = source.detach().cpu().numpy() if isinstance(source, Tensor) else source
    if array.ndim == 4 and len(array) == 1:
        array = array[0]
    return Volume.from_array(np.asarray(array), matrix)


def _matrix(affine: Any | None) -> np.ndarray:
    """Return an affine as ``(4, 4)`` numbers.

    Raises:
        InputError: It is missing, or something else.
    """
    remedy = "An array needs the 4 x 4 matrix from its voxels to scanner mm"
    if affine is None:
        raise InputError("affine", "is missing", remedy)
    affine = affine.detach().cpu().numpy() if isinstance(affine, Tensor) else affine
    try:
        matrix = np.asarray(affine, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError("affine", f"is no matrix of numbers ({affine!r:.40})", remedy) from None
    if matrix.shape != (4, 4):
        raise InputError("affine", f"has shape {matrix.shape}", remedy)
    if not np.allclose(matrix[3], (0, 0, 0, 1)):
        raise InputError("affine", f"has the last row {matrix[3].tolist()}, not 0, 0, 0, 1", remedy)
    return matrix
