"""A trained model ready to use: from a scan to a map, in the scan's own grid, of what is unlike health."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from brainuad.calibration import Calibration
from brainuad.config import DataConfig, ModelConfig
from brainuad.devices import compile_networks, resolve_device, resolve_precision
from brainuad.errors import InputError
from brainuad.modelfile import portable, read_health, read_model, write_model
from brainuad.registry import MODELS
from brainuad.scoring import score_maps
from brainuad.scoring._arrays import as_volume, mask_on
from brainuad.scoring.atlas import IMAGE, HealthyMoments, base_of

SCORE = "ssim_ensemble"


def known_models() -> list[str]:
    """Return the names of the models that are shipped with the package."""
    folder = files("brainuad.assets") / "models"
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []


def load_model(name_or_dir: str | Path, device: str = "auto", precision: str = "auto") -> Detector:
    """Load a model by the name of a shipped one or from a folder.

    Args:
        name_or_dir: A name such as "lite-t1", or a folder written by training or :meth:`Detector.save`.
        device: "auto", "cpu", "cuda" or "mps".
        precision: What the network computes in: "float32", "bfloat16", or "auto" (see
            :func:`brainuad.devices.resolve_precision`). On CUDA "float32" turns TF32 off for the whole process.

    Raises:
        InputError: There is no such model, device or precision, or the folder holds no usable model.
    """
    target = resolve_device(device)
    precision = resolve_precision(precision, target)
    if target.type == "cuda" and precision == "float32":
        torch.backends.cudnn.allow_tf32 = False  # PyTorch's convolutions have ten bits of mantissa with it
    with model_folder(name_or_dir) as folder:
        return replace(Detector.load(folder, device=target), precision=precision)


@contextmanager
def model_folder(name_or_dir: str | Path) -> Iterator[Path]:
    """Give the folder of a shipped model, or the one that was given.

    Raises:
        InputError: There is no such model.
    """
    known = known_models()
    if str(name_or_dir) in known:
        with as_file(files("brainuad.assets") / "models" / str(name_or_dir)) as folder:
            yield folder
        return
    if not Path(name_or_dir).is_dir():
        names = f"Shipped models: {', '.join(known)}" if known else "No model is shipped with this version"
        raise InputError(name_or_dir, "is neither a shipped model nor a folder", names)
    yield Path(name_or_dir)


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
        calibration: What it does on healthy scans, or None.
        name: Name for tables and reports.
        health: What scores relative to health ("<name>_z", "intensity_atlas") compare with, or None.
        precision: What the network's products are computed in, "float32" or "bfloat16"; all else is float32.
        compiled: Whether the network is compiled; see :meth:`compile`.
    """

    model: nn.Module
    model_config: ModelConfig
    data_config: DataConfig
    provenance: dict[str, Any] = field(default_factory=dict)
    calibration: Calibration | None = None
    name: str = "model"
    health: HealthyMoments | None = None
    precision: str = "float32"
    compiled: bool = False

    @classmethod
    def load(cls, folder: str | Path, *, device: str | torch.device = "cpu") -> Detector:
        """Read a model folder; weights stored in 16 bits become float32.

        Raises:
            InputError: See :func:`brainuad.modelfile.read_model`.
        """
        model, model_config, data_config, provenance, calibration = read_model(folder)
        health = read_health(folder)
        name = Path(folder).resolve().name
        return cls(model.to(device), model_config, data_config, provenance, calibration, name, health)

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
            health=self.health,
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
    def map_device(self) -> torch.device:
        """Where maps are made and cleaned: with the model on CUDA, else on the CPU."""
        return self.device if self.device.type == "cuda" else torch.device("cpu")

    @property
    def fingerprint(self) -> str:
        """Hexadecimal hash of weights and settings: equal for detectors that give the same results but for rounding."""
        digest = hashlib.sha256()
        settings = [asdict(self.model_config), portable(self.data_config)]
        digest.update(json.dumps(settings, sort_keys=True).encode())
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:32]

    @property
    def result_key(self) -> str:
        """What reconstructions depend on to the last bit, as far as a detector knows: for names of what is kept."""
        return f"{self.fingerprint} {self.device.type} {self.precision}{' compiled' * self.compiled}"

    def with_settings(self, **changes: Any) -> Detector:
        """Return a detector with the same weights and other model settings, say ``test_timesteps=250``.

        It has no calibration and knows no health, for these were found with the settings there were. Of a compiled
        detector it is another compiled one.

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
        changed = replace(
            self, model=model, model_config=config, calibration=None, health=None, compiled=False
        )
        return changed.compile() if self.compiled else changed

    def compile(self) -> Detector:
        """Return the same detector with a copy of the network, which is compiled when it is first called.

        That takes up to a minute for each shape of volumes on a GPU, minutes on a processor. It pays for many scans on
        a GPU, where the published network then takes a third of the time.

        Raises:
            InputError: See :func:`brainuad.devices.compile_networks`.
        """
        model: Any = copy.deepcopy(self.model)
        model.to(memory_format=torch.channels_last)
        compile_networks(model, self.device)
        return replace(self, model=model, compiled=True)

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
        reduced = torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")
        with torch.inference_mode(), reduced:
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

        With a model on CUDA the maps are made there and stay there.

        Args:
            image: ``(X, Y, Z)`` in [0, 1].
            mask: ``(X, Y, Z)`` brain mask.
            names: Entries of the score registry, or scores relative to health.
            seed: Seeds the reconstruction.

        Raises:
            InputError: A score is unknown, or needs healthy scans to compare with that the model does not carry.
            ValueError: The shapes do not fit.
        """
        return self.compare(image, self.reconstruct(image, seed), mask, names)

    def compare(
        self, image: Any, reconstructions: Any, mask: Any, names: Iterable[str] = (SCORE,)
    ) -> dict[str, Tensor]:
        """Return what :meth:`score_maps` does, from given reconstructions ``(S, X, Y, Z)``.

        With a model on CUDA the maps are made there and stay there.
        """
        if self.device.type == "cuda":
            image = as_volume(image, "image").to(self.device)
            reconstructions = as_volume(reconstructions, "reconstructions", 4).to(self.device)
            mask = mask_on(image, mask)
        bases = {name: base_of(name) for name in names}
        plain = dict.fromkeys(base or name for name, base in bases.items())
        plain.pop(IMAGE, None)
        maps = score_maps(image, reconstructions, mask, plain, sigmas=self.model_config.sigma_ens)
        found = {}
        for name, base in bases.items():
            if base is None:
                found[name] = maps[name]
            else:
                compared = image if base == IMAGE else maps[base]
                found[name] = self._known_health(name).score(name, compared, mask)
        return found

    def check_score(self, name: str) -> None:
        """Check that a score can be computed with this model.

        Raises:
            InputError: The score is unknown, or needs healthy scans to compare with that the model does not carry.
        """
        base = base_of(name)
        if base is not None:
            self._known_health(name).check(base)

    def _known_health(self, name: str) -> HealthyMoments:
        if self.health is None:
            remedy = "Calibrate it with three or more: brainuad calibrate MODEL HEALTHY... -o DIR"
            raise InputError(name, f"needs healthy scans to compare with; {self.name} knows none", remedy)
        return self.health
