"""Denoising diffusion (Ho et al. 2020): predict the clean slice, reconstruct a scan in one network call."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from brainuad.config import TEST_TIME
from brainuad.errors import InputError
from brainuad.models.base import Draws, Model, batch_of, check_positive
from brainuad.models.noise import LACK_SPARSE_SUM, draw_permutations, gaussian_noise, simplex_fields, simplex_noise
from brainuad.models.unet import UNet, UNetSettings
from brainuad.registry import MODELS

NOISES = {"simplex": simplex_noise, "gaussian": gaussian_noise}
# noise levels that training by the clock keeps at its end on each side of those of reconstruction
NARROWING = 100
LOSSES = {"l1": nn.functional.l1_loss, "l2": nn.functional.mse_loss}


@dataclass
class DiffusionSettings(UNetSettings):
    """A diffusion model: the network, its diffusion process, and how a scan is reconstructed.

    Attributes:
        timesteps: Length T of the noise schedule.
        train_timesteps: Half-open range from which training draws t (0-based), uniformly.
        test_timesteps: Noise level of reconstruction, 1-based as in the release: 500 means t = 499.
        noise_ensemble: Average the reconstructions of ``step_ensemble`` in place of ``test_timesteps``.
        step_ensemble: Noise levels of that average, 1-based.
        noise_draws: Independent noise draws averaged at each noise level.
        noisetype: "simplex" or "gaussian".
        shared_noise: Repeat one noise field over the whole batch and every slice, as the release does.
        loss: "l1" or "l2", on the predicted clean image.
    """

    name: str = "ddpm"
    timesteps: int = 1000
    train_timesteps: tuple[int, int] = (0, 1000)
    test_timesteps: int = field(default=500, metadata=TEST_TIME)
    noise_ensemble: bool = field(default=False, metadata=TEST_TIME)
    step_ensemble: tuple[int, ...] = field(default=(250, 500, 750), metadata=TEST_TIME)
    noise_draws: int = field(default=1, metadata=TEST_TIME)
    noisetype: str = "simplex"
    shared_noise: bool = False
    loss: str = "l1"


def cosine_betas(timesteps: int) -> Tensor:
    """Return the cosine schedule's variances beta_t, (T,) float64 (Nichol & Dhariwal 2021, equation 17)."""

    def alpha_bar(t: int) -> float:
        return math.cos((t / timesteps + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - alpha_bar(t + 1) / alpha_bar(t), 0.999) for t in range(timesteps)]
    return torch.tensor(betas, dtype=torch.float64)


@MODELS.register("ddpm", settings=DiffusionSettings)
class DiffusionModel(Model):
    """A diffusion model of healthy axial slices.

    Slices are in [0, 1] at every public call, and in [-1, 1] within. All randomness comes from the generator
    that is passed; it may live on the CPU whatever the model's device, and then devices see the same noise.

    Args:
        config: The settings.
        condition: Numbers that ``condition`` gives for each slice; 0 where it gives none.

    Attributes:
        unet: The network; it predicts the clean slice.
        signal_scale: (T,) sqrt(alpha_bar_t), the share of the slice in a noisy one.
        noise_scale: (T,) sqrt(1 - alpha_bar_t), the share of the noise.
    """

    signal_scale: Tensor
    noise_scale: Tensor
    whole_volumes = True

    def __init__(self, config: DiffusionSettings, *, condition: int = 0) -> None:
        super().__init__()
        _check(config)
        self.config = config
        self.unet = UNet(config, condition=condition)
        alpha_bars = torch.cumprod(1 - cosine_betas(config.timesteps), dim=0)
        self.register_buffer("signal_scale", alpha_bars.sqrt().float(), persistent=False)
        self.register_buffer("noise_scale", (1 - alpha_bars).sqrt().float(), persistent=False)

    def q_sample(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Noise clean slices to timestep t (Ho et al. 2020, equation 4).

        Args:
            x: (B, 1, X, Y) in [-1, 1].
            t: (B,) int64, 0-based.
            noise: (B, 1, X, Y).
        """
        return self.signal_scale[t, None, None, None] * x + self.noise_scale[t, None, None, None] * noise

    def draw(self, count: int, size: tuple[int, int], generator: torch.Generator, *, progress: float = 0.0) -> Draws:
        """Draw "timesteps", (B,) int64, and "noise", (B, 1, X, Y), or permutation tables, (B, 256), of simplex noise.

        Timesteps are 0-based and uniform over a range, which is ``config.train_timesteps`` at first. As ``progress``
        grows to 1, the range narrows to the noise levels of reconstruction and 100 on either side.
        """
        low, high = self.config.train_timesteps
        levels = _levels(self.config)
        narrow_low, narrow_high = max(low, min(levels) - NARROWING), min(high, max(levels) + NARROWING)
        if narrow_low < narrow_high:  # else reconstruction lies outside of what is trained
            low, high = (
                round(wide + progress * (narrow - wide)) for wide, narrow in ((low, narrow_low), (high, narrow_high))
            )
        timesteps = torch.randint(low, high, (count,), generator=generator, device=generator.device)
        fields = 1 if self.config.shared_noise else count
        if self.config.noisetype == "simplex":
            noise = draw_permutations(fields, generator)
        else:
            noise = gaussian_noise((fields, 1, *size), generator=generator)
        return {"timesteps": timesteps, "noise": noise.expand(count, *noise.shape[1:])}

    def loss(self, images: Tensor, masks: Tensor, draws: Draws) -> Tensor:
        """Return the mean error of the predicted clean slices, all pixels, in units of the [-1, 1] scale.

        Raises:
            ValueError: ``images`` is not (B, 1, X, Y).
        """
        clean, noisy = self.training_pair(images, draws)
        predicted = self.denoise(noisy, draws["timesteps"], self.condition(clean))
        return LOSSES[self.config.loss](predicted.float(), clean)

    def training_pair(self, images: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Return clean slices and noisy ones, (B, 1, X, Y) in [-1, 1] each; see ``loss``."""
        _check_images(images)
        noise = draws["noise"]
        if noise.ndim == 2:  # permutation tables
            tables = noise.cpu() if images.device.type in LACK_SPARSE_SUM else noise
            noise = simplex_fields(tables, (images.shape[2], images.shape[3]))[:, None].to(images.device)
        clean = 2 * images - 1
        return clean, self.q_sample(clean, draws["timesteps"], noise)

    def condition(self, clean: Tensor) -> Tensor | None:
        """Return what the network gets beside the noisy slices, from clean ones (B, 1, X, Y) in [-1, 1]: here None."""
        return None

    def denoise(self, noisy: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """Return the clean slices that the network predicts, (B, 1, X, Y) in [-1, 1]."""
        return self.unet(noisy, t) if condition is None else self.unet(noisy, t, condition)

    def draw_noise(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draw a noise field for every slice of (B, 1, X, Y); with ``config.shared_noise`` one for all."""
        slices = 1 if self.config.shared_noise else len(images)
        noise = NOISES[self.config.noisetype]((slices, 1, *images.shape[2:]), generator=generator, device=images.device)
        return noise.expand_as(images)

    def noised(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return what ``reconstruct`` with an equal generator shows the network first, on the scale of ``images``."""
        t = torch.full((len(images),), _levels(self.config)[0] - 1, device=images.device)
        return (self.q_sample(2 * images - 1, t, self.draw_noise(images, generator)) + 1) / 2

    def pictures(self, images: Tensor, masks: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return what the network is shown too."""
        state = generator.get_state()
        shown = {"scan": images, "noised": self.noised(images, generator)}
        generator.set_state(state)  # the reconstruction is from the same noise
        return shown | super().pictures(images, masks, generator)

    @torch.inference_mode()
    def reconstruct(self, images: Tensor, generator: torch.Generator | None, batch_size: int | None = None) -> Tensor:
        """Return how slices would look healthy: noise them once, denoise them in one network call.

        With ``config.noise_ensemble`` the mean over the noise levels of ``step_ensemble``, and always the
        mean over ``noise_draws`` draws at each; every draw is independent.

        Args:
            images: (B, 1, X, Y) in [0, 1].
            generator: Source of the noise; the draws do not depend on ``batch_size``.
            batch_size: Slices in one network call; by default as ``batch_of`` says.

        Raises:
            ValueError: ``images`` is not (B, 1, X, Y).
        """
        _check_images(images)
        batch_size = batch_size or batch_of(images)
        config = self.config
        levels = _levels(config)
        clean = 2 * images - 1
        told = self.condition(clean)
        total = torch.zeros_like(clean)
        for level in levels:
            for _ in range(config.noise_draws):
                noise = self.draw_noise(images, generator)  # for all slices, so that batches do not change it
                t = torch.full((len(images),), level - 1, device=images.device)
                total += self.predict(clean, self.q_sample(clean, t, noise), t, told, batch_size)
        return (total / (len(levels) * config.noise_draws) + 1) / 2

    def predict(self, clean: Tensor, noisy: Tensor, t: Tensor, told: Tensor | None, batch_size: int) -> Tensor:
        """Return the clean slices that the network predicts of noisy ones; ``told`` is what ``condition`` gives."""
        conditions = [None] * len(noisy.split(batch_size)) if told is None else told.split(batch_size)
        batches = zip(noisy.split(batch_size), t.split(batch_size), conditions, strict=True)
        return torch.cat([self.denoise(*batch) for batch in batches])


def _levels(config: DiffusionSettings) -> tuple[int, ...]:
    """Return the noise levels of reconstruction, counted from 1."""
    return tuple(config.step_ensemble) if config.noise_ensemble else (config.test_timesteps,)


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 1:
        raise ValueError(f"images must be (B, 1, X, Y), got shape {tuple(images.shape)}")


def _check(config: DiffusionSettings) -> None:
    """Raise InputError for settings of the diffusion process that cannot be used."""
    if config.noisetype not in NOISES:
        known = f"Known: {', '.join(NOISES)}"
        raise InputError("model.cfg.noisetype", f"unknown noise {config.noisetype!r}", known)
    if config.loss not in LOSSES:
        raise InputError("model.cfg.loss", f"unknown loss {config.loss!r}", f"Known: {', '.join(LOSSES)}")
    check_positive(config, "noise_draws")
    low, high = config.train_timesteps
    if not 0 <= low < high <= config.timesteps:
        fault = f"{tuple(config.train_timesteps)} is not a range within 0..{config.timesteps}"
        raise InputError("model.cfg.train_timesteps", fault, "Give (first, last + 1)")
    name = "step_ensemble" if config.noise_ensemble else "test_timesteps"
    levels = _levels(config)
    if not levels or not all(1 <= level <= config.timesteps for level in levels):
        fault = f"{levels} is not within 1..{config.timesteps}"
        raise InputError(f"model.cfg.{name}", fault, "Noise levels are counted from 1")
