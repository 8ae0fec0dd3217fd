"""The stages of one case, each beside its plain counterpart, on a real scan at any size."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bench import baseline
from bench.counterparts import other_ssim_maps, published_figures
from brainuad.config import DataConfig
from brainuad.data.intensity import scale_to_percentiles
from brainuad.data.loading import place_volumes
from brainuad.data.placement import Placement
from brainuad.data.volume import Volume
from brainuad.detector import Detector
from brainuad.models import DiffusionModel, PairedModel
from brainuad.models.base import Inference
from brainuad.models.noise import opensimplex_permutation
from brainuad.scoring import drop_small, erode_brain, median_filter, ssim_maps
from brainuad.scoring.repertoire import SCORE

SUBJECT = "patient19"  # of the demo's cohort: multiple sclerosis, 66 mL of lesions
_WIDTH = 192.0  # mm along the longest side of a slice
_FRACTION = 0.01  # of the brain is above the threshold
MAPS, ENSEMBLE = "SSIM maps", "SSIM ensemble"
SCORING = (ENSEMBLE, "erode", "median", "components", "metrics")
ON_PROCESSOR = ("read", "prepare", "metrics", "write")  # whatever the model's device
STAGES = ("read", "prepare", "noise", "reconstruct", ENSEMBLE, MAPS, *SCORING[1:], "write")


@dataclass(frozen=True, eq=False)
class Stage:
    """One step of the way, and how else it could be done.

    Attributes:
        name: One of ``STAGES``.
        ours: What this package does.
        plain: What ``bench.baseline`` does, or None where there is nothing to compare with.
        others: Other libraries that do the same, by name.
        part_of: Stage whose time holds this one's.
        flops: Floating-point operations that the arithmetic needs, 0 where memory or zlib is the bound.
        precision: What they are done in, "float32" or "bfloat16".
        bytes: Bytes that have to be moved.
        comparable: Whether ``ours`` and ``plain`` return the same numbers.
    """

    name: str
    ours: Callable[[], Any]
    plain: Callable[[], Any] | None = None
    others: dict[str, Callable[[], Any]] = field(default_factory=dict)
    part_of: str = ""
    flops: float = 0.0
    precision: str = "float32"
    bytes: float = 0.0
    comparable: bool = True


@dataclass(eq=False)
class Case:
    """A scan, its lesions and a stand-in for its reconstruction, on a grid of any size.

    The stand-in is the blurred scan, so that no stage's work depends on the model or on other stages.

    Args:
        detector: The model that reconstructs.
        size: Voxels of the grid.
        folder: For the files that are read and written.
        seed: Seeds the noise.
    """

    detector: Detector
    size: tuple[int, int, int]
    folder: Path
    seed: int = 0

    def __post_init__(self) -> None:
        self.spacing = _WIDTH / max(self.size[:2])
        self.image, self.mask, self.lesion = self._on_grid(Placement.around_atlas(self.size, self.spacing))
        self.image = scale_to_percentiles(self.image, self.mask) * self.mask
        self.reconstruction = ndimage.gaussian_filter(self.image, 2.0 / self.spacing)
        self.sigmas = self.detector.model_config.sigma_ens
        self.device = self.detector.device

    def stage(self, name: str) -> Stage | None:
        """Return a stage; None if the model has no such thing."""
        makers = {
            "read": self._read,
            "prepare": self._prepare,
            "noise": self._noise,
            "reconstruct": self._reconstruct,
            MAPS: self._maps,
            ENSEMBLE: self._ensemble,
            "erode": self._erode,
            "median": self._median,
            "components": self._components,
            "metrics": self._metrics,
            "write": self._write,
        }
        return makers[name]()

    @property
    def voxels(self) -> int:
        """Voxels of the grid."""
        return int(np.prod(self.size))

    def _on_grid(self, frame: Placement) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        with as_file(files("brainuad.assets") / "demo") as demo:
            image, mask, lesion = (Volume.load(demo / f"{SUBJECT}_{kind}.nii.gz") for kind in ("t1", "mask", "seg"))
        return (
            np.maximum(frame.sample(image), 0),
            frame.sample(mask, order=0) > 0.5,
            frame.sample(lesion, order=0) > 0.5,
        )

    @cached_property
    def _files(self) -> dict[str, Path]:
        """The case as files of the published layout: twice as fine as the grid."""
        x, y, z = self.size
        frame = Placement.around_atlas((2 * x, 2 * y, 2 * z), self.spacing / 2)
        paths = {}
        for kind, array in zip(("t1", "mask", "seg"), self._on_grid(frame), strict=True):
            paths[kind] = self.folder / f"{kind}.nii.gz"
            # As a file of 1 mm in the RAS axes, which the published loader takes it for.
            stored = np.rint(array * (1 if kind == "t1" else 255)).astype(np.float32)
            Volume.from_array(stored if kind == "t1" else stored > 0, np.eye(4)).save(
                paths[kind], np.int16 if kind == "t1" else np.uint8
            )
        return paths

    def _read(self) -> Stage:
        paths = self._files.values()
        return Stage(
            "read",
            lambda: [Volume.load(path).array for path in paths],
            lambda: [baseline.read(path) for path in paths],
            bytes=3 * 4 * 8 * self.voxels,
        )

    def _prepare(self) -> Stage:
        volumes = [Volume.load(path) for path in self._files.values()]
        x, y, z = (2 * length for length in self.size)
        config = DataConfig(imageDim=(x, y, z), rescaleFactor=2.0, smoothing_iterations=3, affine="ignored")

        def ours() -> Any:
            return place_volumes(volumes[0], volumes[1], volumes[2], config)[:3]

        image, mask, lesion = (volume.array for volume in volumes)
        return Stage(
            "prepare",
            ours,
            lambda: baseline.prepare(image, mask, lesion, (x, y, z)),
            # three smoothing steps, the percentiles and the reduction read and write the fine grid
            bytes=10 * 4 * 8 * self.voxels,
        )

    @cached_property
    def _levels(self) -> tuple[int, ...]:
        config: Any = self.detector.model_config
        levels = tuple(config.step_ensemble) if config.noise_ensemble else (config.test_timesteps,)
        return levels * config.noise_draws

    def _slices(self) -> Tensor:
        return torch.from_numpy(self.image).permute(2, 0, 1)[:, None].to(self.device)

    def _draw(self) -> Tensor:
        """Return the noise of a reconstruction, (L, Z, 1, X, Y)."""
        generator, slices = torch.Generator().manual_seed(self.seed), self._slices()
        model: Any = self.detector.model
        return torch.stack([model.draw_noise(slices, generator) for _ in self._levels])

    def _noise(self) -> Stage | None:
        config: Any = self.detector.model_config
        if not isinstance(self.detector.model, DiffusionModel) or config.noisetype != "simplex":
            return None
        table = opensimplex_permutation(self.seed).tolist()
        x, y, z = self.size
        slices = 1 if config.shared_noise else z

        def plain() -> Any:  # the release draws one field for a volume, at each level
            return [np.broadcast_to(baseline.noise_field((x, y), table), (z, x, y)).copy() for _ in self._levels]

        # Six octaves, four lattice points each, a gradient of two components, one product and one sum.
        work = len(self._levels) * slices * x * y
        return Stage("noise", self._draw, plain, flops=work * 6 * 4 * 2 * 2, bytes=4 * work, comparable=False)

    def _reconstruct(self) -> Stage:
        model: Any = self.detector.model
        if type(self.detector.model) not in (DiffusionModel, PairedModel):  # those that the plain counterpart is of
            return Stage("reconstruct", lambda: self.detector.infer(self.image, self.mask, self.seed)[0])
        noise = self._draw()
        given, plain = copy.copy(model), copy.deepcopy(model)  # a deep copy is not compiled
        plain.to(memory_format=torch.contiguous_format)
        drawn: list[Tensor] = []

        # the network alone is timed: noise is a stage of its own
        def next_noise(images: Tensor, generator: torch.Generator | None) -> Tensor:
            if not drawn:
                drawn.extend(reversed(noise.unbind()))
            return drawn.pop()

        given.draw_noise = next_noise
        volume = torch.from_numpy(self.image).to(self.device)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            plain.unet(self._slices()[:1], torch.zeros(1, dtype=torch.long, device=self.device))
        detector = replace(self.detector, model=given)
        return Stage(
            "reconstruct",
            lambda: detector.reconstruct(self.image)[0],
            lambda: baseline.reconstruct(plain, volume, noise, self._levels),
            flops=counter.get_total_flops() * self.size[2] * len(self._levels),
            precision=detector.precision,
        )

    def _tensors(self) -> tuple[Tensor, Tensor]:
        pair = (torch.from_numpy(array).to(self.device) for array in (self.reconstruction, self.image))
        first, second = pair
        return first, second

    def _ssim_work(self) -> tuple[float, float]:
        """Return operations and bytes of separable windows: two volumes and their squares, along three axes.

        Each pass reads and writes its volume once; a symmetric window of n taps takes about n sums and n / 2 products.
        """
        taps = sum(2 * int(3.5 * sigma + 0.5) + 1 for sigma in self.sigmas)
        passes = 4 * 3
        return passes * 1.5 * taps * self.voxels, passes * len(self.sigmas) * 2 * 4 * self.voxels

    def _maps(self) -> Stage:
        pair = self._tensors()
        flops, moved = self._ssim_work()
        others = {} if self.device.type != "cpu" else other_ssim_maps(*pair, self.sigmas)
        return Stage(
            MAPS,
            lambda: ssim_maps(*pair, sigmas=self.sigmas),
            lambda: baseline.ssim_maps(*pair, self.sigmas),
            others,
            part_of=ENSEMBLE,
            flops=flops,
            bytes=moved,
        )

    def _anomaly(self) -> Tensor:
        """Return the raw map, as a detector makes it."""
        reconstruction, image = self._tensors()
        return self.detector.compare(image, Inference(reconstruction[None], None), self.mask)[SCORE]

    def _ensemble(self) -> Stage:
        reconstruction, image = self._tensors()
        mask = torch.from_numpy(self.mask).to(self.device)
        flops, moved = self._ssim_work()
        return Stage(
            ENSEMBLE,
            lambda: self.detector.compare(image, Inference(reconstruction[None], None), mask)[SCORE],
            lambda: baseline.ssim_ensemble(reconstruction, image, mask, self.sigmas),
            flops=flops,
            bytes=moved,
        )

    def _erode(self) -> Stage:
        anomaly = self._anomaly()
        mask = torch.from_numpy(self.mask).to(self.device)
        return Stage(
            "erode",
            lambda: erode_brain(anomaly, mask),
            lambda: baseline.erode(anomaly.cpu().numpy(), self.mask),
            bytes=(4 + 4 + 1) * self.voxels,
        )

    def _median(self) -> Stage:
        eroded = erode_brain(self._anomaly(), self.mask)
        return Stage(
            "median",
            lambda: median_filter(eroded),
            lambda: baseline.median(eroded.cpu().numpy()),
            bytes=8 * self.voxels,
        )

    def _final(self) -> tuple[Tensor, float]:
        """Return the final map and its threshold."""
        final = median_filter(erode_brain(self._anomaly(), self.mask))
        return final, float(np.quantile(final.cpu().numpy()[self.mask], 1 - _FRACTION))

    def _components(self) -> Stage:
        final, threshold = self._final()
        return Stage(
            "components",
            lambda: drop_small(final > threshold),
            lambda: baseline.components(final.cpu().numpy(), threshold),
            bytes=(4 + 1) * self.voxels,
        )

    def _metrics(self) -> Stage:
        final, threshold = self._final()
        predicted = drop_small(final > threshold)
        arrays = [tensor.cpu().numpy() for tensor in (final, predicted)]
        arrays += [self.lesion, self.mask, self.image, self.reconstruction]
        return Stage(
            "metrics",
            lambda: published_figures(final, predicted, self.lesion, self.mask, self.image, arrays[-1]),
            lambda: baseline.metrics(*arrays),
            bytes=(3 * 4 + 3) * self.voxels,
        )

    def _write(self) -> Stage:
        final, _ = self._final()
        affine = Placement.around_atlas(self.size, self.spacing).affine
        volume = Volume.from_array(final.cpu().numpy(), affine)
        paths = [self.folder / f"{name}_anomaly.nii.gz" for name in ("ours", "plain")]
        return Stage(
            "write",
            lambda: volume.save(paths[0]),
            lambda: baseline.write(volume.array, affine, paths[1]),
            bytes=4 * self.voxels,
            comparable=False,
        )
