"""A trained model ready to use: from a scan to a map, in the scan's own grid, of what is unlike health."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch import Tensor, nn

from brainuad.config import DataConfig, ModelConfig
from brainuad.data.atlas import place_scan
from brainuad.data.extract import brain_mask as find_brain
from brainuad.data.extract import on_same_grid
from brainuad.data.frame import resample
from brainuad.data.volume import Volume
from brainuad.errors import InputError
from brainuad.evaluation import scan_score
from brainuad.modelfile import portable, read_model, write_model
from brainuad.registry import MODELS
from brainuad.scoring import postprocess, score_maps

DEVICES = ("auto", "cpu", "cuda", "mps")
SCORE = "ssim_ensemble"


def resolve_device(name: str) -> torch.device:
    """Return a device by name; "auto" is CUDA, else MPS, else the CPU.

    Raises:
        InputError: The name is unknown, or there is no such device.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    kind = name.split(":")[0]
    if kind not in available:
        raise InputError("device", f"{name!r} is unknown", f"Choose one of {', '.join(DEVICES)}")
    if not available[kind]:
        raise InputError("device", f"{name!r} is not available", "Choose auto or cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise InputError("device", f"{name!r} is unknown", f"Choose one of {', '.join(DEVICES)}") from error


def known_models() -> list[str]:
    """Return the names of the models that are shipped with the package."""
    folder = files("brainuad.assets") / "models"
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []


def load_model(name_or_dir: str | Path, device: str = "auto") -> Detector:
    """Load a model by the name of a shipped one or from a folder.

    Args:
        name_or_dir: A name such as "lite-t1", or a folder written by training or :meth:`Detector.save`.
        device: "auto", "cpu", "cuda" or "mps".

    Raises:
        InputError: There is no such model or device, or the folder holds no usable model.
    """
    target = resolve_device(device)
    known = known_models()
    if str(name_or_dir) in known:
        with as_file(files("brainuad.assets") / "models" / str(name_or_dir)) as folder:
            return Detector.load(folder, device=target)
    if not Path(name_or_dir).is_dir():
        names = f"Shipped models: {', '.join(known)}" if known else "No model is shipped with this version"
        raise InputError(name_or_dir, "is neither a shipped model nor a folder", names)
    return Detector.load(name_or_dir, device=target)


@dataclass(eq=False)
class Detector:
    """A model of healthy brains with everything needed to score a scan.

    All volumes are ``(X, Y, Z)`` on the model's grid with the brain in [0, 1], as ``brainuad.data.loading``
    gives them; :func:`score` takes scans as they are.

    Attributes:
        model: Entry of the model registry: ``reconstruct(images (B, 1, X, Y), generator)``.
        model_config: Its settings.
        data_config: The grid, and how scans are brought onto it.
        provenance: How the model came about: seed, version ...
        calibration: Figures found on healthy validation scans, or None.
        name: Name for tables and reports.
    """

    model: nn.Module
    model_config: ModelConfig
    data_config: DataConfig
    provenance: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] | None = None
    name: str = "model"

    @classmethod
    def load(cls, folder: str | Path, *, device: str | torch.device = "cpu") -> Detector:
        """Read a model folder; weights stored in 16 bits become float32.

        Raises:
            InputError: See :func:`brainuad.modelfile.read_model`.
        """
        model, model_config, data_config, provenance, calibration = read_model(folder)
        name = Path(folder).resolve().name
        return cls(model.to(device), model_config, data_config, provenance, calibration, name)

    def save(self, folder: str | Path, *, half: bool = False) -> None:
        """Write a model folder; ``half`` stores the weights in 16 bits.

        Raises:
            InputError: The folder cannot be written to.
        """
        write_model(
            folder,
            self.model,
            self.model_config,
            self.data_config,
            provenance={k: v for k, v in self.provenance.items() if k not in ("format", "version")},
            calibration=self.calibration,
            half=half,
        )

    @property
    def modality(self) -> str:
        """The contrast it was trained on: "t1" or "t2"."""
        return self.data_config.mode

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def fingerprint(self) -> str:
        """Hexadecimal hash of weights and settings: equal for detectors that give equal results."""
        digest = hashlib.sha256()
        settings = [asdict(self.model_config), portable(self.data_config)]
        digest.update(json.dumps(settings, sort_keys=True).encode())
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:32]

    def with_settings(self, **changes: Any) -> Detector:
        """Return a detector with the same weights and other model settings, say ``test_timesteps=250``.

        Raises:
            InputError: A value cannot be used, or the weights do not fit it.
        """
        config = replace(self.model_config, **changes)
        if config == self.model_config:
            return self
        model = MODELS[config.name](config)
        try:
            model.load_state_dict(self.model.state_dict())
        except RuntimeError as error:
            raise InputError(", ".join(changes), "do not fit the weights", "Train with them") from error
        model.requires_grad_(False).eval().to(self.device)
        return replace(self, model=model, model_config=config)

    def reconstruct(self, image: Any, seed: int = 0, *, draws: int = 1) -> Tensor:
        """Return how the brain would look healthy.

        Args:
            image: ``(X, Y, Z)`` in [0, 1]; array or tensor.
            seed: Seeds the noise, which is the same on every device.
            draws: Reconstructions from independent noise.

        Returns:
            ``(draws, X, Y, Z)`` float32 on the CPU; values are not clamped.

        Raises:
            ValueError: ``image`` is not (X, Y, Z), or ``draws`` is not positive.
        """
        volume = torch.as_tensor(image, dtype=torch.float32)
        if volume.ndim != 3 or draws < 1:
            raise ValueError(f"expected (X, Y, Z) and draws > 0, got {tuple(volume.shape)} and {draws}")
        generator = torch.Generator().manual_seed(seed)
        with torch.inference_mode():
            stack = [self._reconstruct_once(volume, generator) for _ in range(draws)]
        return torch.stack(stack).float().cpu()

    def _reconstruct_once(self, volume: Tensor, generator: torch.Generator) -> Tensor:
        model: Any = self.model
        if hasattr(model, "reconstruct_volume"):
            result: Tensor = model.reconstruct_volume(volume.to(self.device), generator)
            return result
        slices = volume.permute(2, 0, 1)[:, None].to(self.device)
        result = model.reconstruct(slices, generator)
        return result[:, 0].permute(1, 2, 0)

    def score_maps(
        self, image: Any, mask: Any, names: Iterable[str] = (SCORE,), seed: int = 0
    ) -> dict[str, Tensor]:
        """Return anomaly maps by score, ``(X, Y, Z)`` each, 0 outside the mask, before any post-processing.

        Args:
            image: ``(X, Y, Z)`` in [0, 1].
            mask: ``(X, Y, Z)`` brain mask.
            names: Entries of the score registry.
            seed: Seeds the reconstruction.

        Raises:
            InputError: A score is unknown.
            ValueError: The shapes do not fit.
        """
        return self.compare(image, self.reconstruct(image, seed), mask, names)

    def compare(
        self, image: Any, reconstructions: Any, mask: Any, names: Iterable[str] = (SCORE,)
    ) -> dict[str, Tensor]:
        """Return what :meth:`score_maps` does, from given reconstructions ``(S, X, Y, Z)``."""
        return score_maps(image, reconstructions, mask, names, sigmas=self.model_config.sigma_ens)


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
    brain = find_brain(scan, given)
    if np.ptp(scan.array[brain]) == 0:
        raise ValueError("is constant inside the brain")
    placed = place_scan(scan, brain, detector.data_config, seed=seed)
    reconstruction = detector.reconstruct(placed.image, seed)
    anomaly = postprocess(detector.compare(placed.image, reconstruction, placed.mask)[SCORE], placed.mask)

    def to_native(array: Any) -> np.ndarray:
        matrix = np.linalg.inv(placed.to_scan) @ scan.affine
        native = resample(np.asarray(array, dtype=np.float32), matrix, scan.array.shape, order=1)
        return scan.with_array(native * brain).file_axes()

    return ScoreResult(
        anomaly=to_native(anomaly),
        reconstruction=to_native(reconstruction[0]),
        image=to_native(placed.image),
        brain=scan.with_array(brain).file_axes() > 0.5,
        affine=_scan_affine(scan),
        score=scan_score(anomaly, placed.mask),
        alignment=placed.alignment,
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
