"""A trained model ready to use: anomaly maps of a scan on the model's grid."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from brainuad.calibration import Calibration
from brainuad.config import DataConfig, ModelSettings
from brainuad.devices import compile_networks, resolve_device, resolve_precision
from brainuad.errors import InputError
from brainuad.inference import device_of, infer, infer_second
from brainuad.modelfile import model_folder, portable, read_health, read_model, write_model
from brainuad.models.base import Inference, Model
from brainuad.registry import MODELS
from brainuad.scoring import score_maps
from brainuad.scoring._arrays import as_volume, keep_inside, mask_on
from brainuad.scoring.health import HealthyMoments
from brainuad.scoring.names import IMAGE, OWN_MAP, base_of, bases_of
from brainuad.scoring.rarity import ENSEMBLES, OF_TWO, RARITY, cleaned
from brainuad.scoring.repertoire import SCORE, Repertoire, draws_of
from brainuad.scoring.scores import SECOND

Relate = Callable[[str, Any, Any], Tensor]


def load_model(name_or_dir: str | Path, device: str = "auto", precision: str = "auto", *, fold: int = 0) -> Detector:
    """Load a model by the name of a shipped one or from a folder.

    Args:
        name_or_dir: A name such as "lite-t1", the folder of a model, or that of a run or one of its folds.
        device: "auto", "cpu", "cuda" or "mps".
        precision: What the network computes in: "float32", "bfloat16", or "auto" (see
            `brainuad.devices.resolve_precision`). On CUDA "float32" turns TF32 off for the whole process.
        fold: Fold of a run.

    Raises:
        InputError: There is no such model, device or precision, or the folder holds no usable model.

    Examples:
        >>> load_model("lite-t1", device="cpu", precision="float32")
        Detector(lite-t1: ddpm_dae, t1, 5,213,429 parameters, cpu, float32, calibrated on 35 scans)
    """
    target = resolve_device(device)
    precision = resolve_precision(precision, target)
    if target.type == "cuda" and precision == "float32":
        # in TF32, PyTorch's convolutions have ten bits of mantissa
        torch.backends.cudnn.allow_tf32 = False
    with model_folder(name_or_dir, fold) as folder:
        return replace(Detector.load(folder, device=target), precision=precision)


@dataclass(frozen=True, eq=False)
class Maps:
    """Reconstruction and anomaly maps of a scan, on the model's grid.

    Attributes:
        reconstruction: ``(X, Y, Z)`` float32, the brain as it would look healthy, the first draw of several; None for
            a model that makes none.
        raw: Anomaly map by score, ``(X, Y, Z)`` float32 each, 0 outside the brain.
        final: The maps to show and measure: the same, post-processed unless told otherwise.
    """

    reconstruction: np.ndarray | None
    raw: dict[str, np.ndarray]
    final: dict[str, np.ndarray]


@dataclass(eq=False, repr=False)
class Detector:
    """A model of healthy brains, with its settings, calibration and healthy statistics.

    All volumes are ``(X, Y, Z)`` on the model's grid with the brain in [0, 1], as ``brainuad.data.loading``
    gives them; `score` takes scans as they are.

    Attributes:
        model: An entry of the model registry, see `brainuad.models.base.Model`.
        model_config: Its settings.
        data_config: The grid, and how scans are resampled to it.
        provenance: Origin of the model: seed, version, training data ...
        calibration: Its thresholds and scores on healthy scans, or None.
        name: Name for tables and reports.
        health: Healthy statistics for the scores "<name>_z", "intensity_atlas" and "rarity", or None.
        precision: Number format of the network's products, "float32" or "bfloat16"; all else is float32.
        compiled: Whether the network is compiled; see `compile`.
    """

    model: Model
    model_config: ModelSettings
    data_config: DataConfig
    provenance: dict[str, Any] = field(default_factory=dict)
    calibration: Calibration | None = None
    name: str = "model"
    health: HealthyMoments | None = None
    precision: str = "float32"
    compiled: bool = False

    def __repr__(self) -> str:
        weights = sum(weight.numel() for weight in self.model.parameters())
        known = f"calibrated on {self.calibration.scans} scans" if self.calibration else "not calibrated"
        about = f"{self.model_config.name}, {self.modality}, {weights:,} parameters, {self.device}, {self.precision}"
        return f"Detector({self.name}: {about}, {known})"

    @classmethod
    def load(cls, folder: str | Path, *, device: str | torch.device = "cpu") -> Detector:
        """Read a model folder; weights stored in 8 or 16 bits become float32.

        Raises:
            InputError: See `brainuad.modelfile.read_model`.
        """
        model, model_config, data_config, provenance, calibration = read_model(folder)
        health = read_health(folder)
        name = Path(folder).resolve().name
        return cls(model.to(device), model_config, data_config, provenance, calibration, name, health)

    def save(self, folder: str | Path, *, bits: int = 32) -> None:
        """Write a model folder; ``bits`` of a weight are 32, 16 or 8, see `brainuad.modelfile.write_model`.

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
            bits=bits,
        )

    @property
    def modality(self) -> str:
        """The contrast it was trained on: "t1", "t2" or "flair"."""
        return self.data_config.mode

    @property
    def scores(self) -> Repertoire:
        """The scores that it can give."""
        model = self.model
        ensemble = (OF_TWO if model.has_second else ENSEMBLES).get(self.modality, ENSEMBLES[self.modality])
        return Repertoire(self.name, model.reconstructs, model.has_map, model.has_second, ensemble, self.health)

    @property
    def device(self) -> torch.device:
        """Device of the model; a model without weights computes on the CPU."""
        return device_of(self.model)

    @property
    def map_device(self) -> torch.device:
        """Device on which maps are computed and post-processed: the model's if it is CUDA, else the CPU."""
        return self.device if self.device.type == "cuda" else torch.device("cpu")

    @property
    def fingerprint(self) -> str:
        """Hexadecimal hash of weights and settings. Detectors with equal hashes differ only by rounding."""
        digest = hashlib.sha256()
        settings = [asdict(self.model_config), portable(self.data_config)]
        digest.update(json.dumps(settings, sort_keys=True).encode())
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:32]

    @property
    def result_key(self) -> str:
        """Key of cached reconstructions: fingerprint, device, precision and compilation."""
        return f"{self.fingerprint} {self.device.type} {self.precision}{' compiled' * self.compiled}"

    def with_settings(self, **changes: Any) -> Detector:
        """Return a detector with the same weights and other model settings, say ``test_timesteps=250``.

        It drops calibration and healthy statistics, which were measured with the old settings. A compiled
        detector gives another compiled one.

        Raises:
            InputError: The model has no such setting, a value cannot be used, or the weights do not fit it.
        """
        known = [field.name for field in fields(self.model_config)]
        for name in changes:
            if name not in known:
                remedy = f"It has {', '.join(known)}"
                raise InputError(name, f"is no setting of {self.model_config.name}", remedy)
        config = replace(self.model_config, **changes)
        if config == self.model_config:
            return self
        model = MODELS[config.name](config)
        try:
            model.load_state_dict(self.model.state_dict())
        except RuntimeError as error:
            raise InputError(", ".join(changes), "do not fit the weights", "Train with them") from error
        model.requires_grad_(False).eval().to(self.device)
        changed = replace(self, model=model, model_config=config, calibration=None, health=None, compiled=False)
        return changed.compile() if self.compiled else changed

    def compile(self) -> Detector:
        """Return the same detector with a compiled copy of the network; compilation happens at the first call.

        Compiling takes up to a minute per shape of volumes on a GPU, and minutes on a CPU. It is worth it for many
        scans on a GPU, where the published network then takes a third of the time.

        Raises:
            InputError: See `brainuad.devices.compile_networks`.
        """
        model: Any = copy.deepcopy(self.model)
        model.to(memory_format=torch.channels_last)
        compile_networks(model, self.device)
        return replace(self, model=model, compiled=True)

    def reconstruct(self, image: Any, seed: int = 0, *, draws: int = 1) -> Tensor:
        """Reconstruct a brain as it would look healthy.

        Args:
            image: ``(X, Y, Z)`` in [0, 1]; array or tensor.
            seed: Seeds the noise, which is the same on every device.
            draws: Reconstructions from independent noise.

        Returns:
            ``(draws, X, Y, Z)`` float32 on the CPU; values are not clamped.

        Raises:
            InputError: The model does not reconstruct.
            ValueError: ``image`` is not (X, Y, Z), or ``draws`` is not positive.
        """
        stack = infer(self.model, image, None, seed, draws=draws, precision=self.precision).reconstruction
        if stack is None:
            raise InputError(self.name, "makes no reconstruction", f"It makes a map: the score {OWN_MAP!r}")
        return stack

    def reconstruct_second(self, image: Any, seed: int = 0) -> Tensor:
        """Return the model's second reconstruction: see `brainuad.inference.infer_second`.

        Raises:
            InputError: The model has one way only.
        """
        if not self.model.has_second:
            raise InputError(self.name, "makes no second reconstruction", "See model=ddpm_dae")
        return infer_second(self.model, image, seed, precision=self.precision)

    def infer(self, image: Any, mask: Any | None, seed: int = 0, names: Iterable[str] = ()) -> Inference:
        """Return all that scores need of the model: see `brainuad.inference.infer`.

        Raises:
            InputError: A score is unknown.
        """
        names = list(names)
        made = infer(self.model, image, mask, seed, draws=self.scores.draws(names), precision=self.precision)
        return made._replace(second=self.reconstruct_second(image, seed)) if self.scores.needs_second(names) else made

    def maps(
        self,
        image: Any,
        mask: Any,
        names: Iterable[str] = (SCORE,),
        seed: int = 0,
        *,
        inference: Inference | None = None,
        relate: Relate | None = None,
        clean: bool = True,
        lap: Callable[[str], None] = lambda step: None,
    ) -> Maps:
        """Return the reconstruction and the anomaly maps of a scan on the model's grid.

        ``brainuad score``, ``calibrate``, ``evaluate`` and ``sweep`` all get their maps here.

        Args:
            image: ``(X, Y, Z)`` in [0, 1].
            mask: ``(X, Y, Z)`` brain mask.
            names: Scores of the registry, "model" for the model's own map, or scores relative to health.
            seed: Seed of the model's random numbers.
            inference: Result of `infer`, where it is known already.
            relate: Function of a score's name, its map and ``mask`` that compares the map with healthy scans. By
                default the model's own healthy statistics are used.
            clean: Post-process the final maps.
            lap: Called with "reconstruct" when the network has finished.

        Raises:
            InputError: A score is unknown, or the model cannot give it: see `scores`.
            ValueError: The shapes do not fit.

        Examples:
            >>> from importlib.resources import files
            >>> from brainuad.data.cohort import read_cases
            >>> from brainuad.data.loading import load_case
            >>> model = load_model("lite-t1", device="cpu")
            >>> tumour = read_cases(files("brainuad.assets") / "demo" / "manifest.csv", "t1")[0]
            >>> case = load_case(tumour, model.data_config)
            >>> image, mask, lesion = (array[:, :, 36:38] for array in (case.image, case.mask, case.lesion))
            >>> maps = model.maps(image, mask, ["l1", "ssim_ensemble"])
            >>> maps.reconstruction.shape
            (80, 96, 2)
            >>> {name: bool(map[lesion].mean() > map[mask & ~lesion].mean()) for name, map in maps.final.items()}
            {'l1': True, 'ssim_ensemble': True}
        """
        names = list(names)
        for name in names:
            (self.scores.check if relate is None else self.scores.check_made)(name)
        if inference is None:
            inference = self.infer(image, mask, seed, names)
        lap("reconstruct")
        raw = self.compare(image, inference, mask, names, relate)
        final = {name: cleaned(name, map, mask) for name, map in raw.items()} if clean else raw
        first = None if inference.reconstruction is None else inference.reconstruction[0].numpy()
        return Maps(first, _on_cpu(raw), _on_cpu(final))

    def compare(
        self, image: Any, inference: Inference, mask: Any, names: Iterable[str] = (SCORE,), relate: Relate | None = None
    ) -> dict[str, Tensor]:
        """Return the raw maps of `maps` from what the model makes of a scan.

        If one score needs several draws, the others use the first draw; otherwise they use the mean of all.

        Args:
            image: ``(X, Y, Z)`` in [0, 1].
            inference: Reconstructions ``(S, X, Y, Z)``, the model's own map and its second reconstruction, each
                ``(X, Y, Z)``; None where no score needs them.
            mask: ``(X, Y, Z)`` brain mask.
            names: As in `maps`.
            relate: As in `maps`.

        Raises:
            InputError: A score needs healthy statistics that the model lacks.
            ValueError: The shapes do not fit, or an input that a score needs is missing.
        """
        stack = inference.reconstruction
        if self.device.type == "cuda":
            image = as_volume(image, "image").to(self.device)
            stack = None if stack is None else as_volume(stack, "reconstructions", 4).to(self.device)
            mask = mask_on(image, mask)
        bases = {name: base_of(name) for name in names}
        plain = dict.fromkeys(base for name in bases for base in bases_of(name, self.scores.ensemble.parts))
        plain.pop(IMAGE, None)
        maps = {}
        if OWN_MAP in plain:
            del plain[OWN_MAP]
            maps[OWN_MAP] = keep_inside(self._here(inference.anomaly, "map of the model's own"), mask)
        of_second = [name for name in plain if name.startswith(SECOND)]
        several = [name for name in plain if draws_of(name) > 1]
        others = [name for name in plain if name not in (*several, *of_second)]
        sigmas = self.model_config.sigma_ens
        if of_second:
            second = self._here(inference.second, "second reconstruction")[None]
            maps |= score_maps(image, second, mask, of_second, sigmas=sigmas)
        if several:
            maps |= score_maps(image, stack, mask, several, sigmas=sigmas)
            # the other scores must not depend on which scores are computed with them
            stack = as_volume(stack, "reconstructions", 4)[:1]
        if others:
            maps |= score_maps(image, stack, mask, others, sigmas=sigmas)
        related = {}
        for name, base in bases.items():
            if name == RARITY:
                related[name] = self.scores.require_health(name).rarity(maps, mask, self.scores.ensemble)
            elif base is None:
                related[name] = maps[name]
            else:
                against_health = relate or self.scores.require_health(name).score
                related[name] = against_health(name, image if base == IMAGE else maps[base], mask)
        return related

    def _here(self, made: Tensor | None, what: str) -> Tensor:
        """Return what the model made, ``(X, Y, Z)``, where maps are computed."""
        if made is None:
            raise ValueError(f"there is no {what}")
        return as_volume(made, what).to(self.map_device)


def _on_cpu(maps: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: map.cpu().numpy() for name, map in maps.items()}
