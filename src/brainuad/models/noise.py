"""Noise fields: Gaussian, and OpenSimplex noise of several octaves, as pure tensor operations on any device.

OpenSimplex (K. Spencer 2014, public domain) in the plane is a sum over the points v of a triangular lattice,

    n(x) = 1/47 * sum_v max(0, 2 - |x - v|^2)^4 * g_v . (x - v),

where g_v is one of eight gradients that a permutation table picks by the lattice point's integer coordinates.
The lattice is fixed: a seed changes the gradients alone. For a grid of pixels the field is therefore a
*constant sparse matrix* times the gradients, with four lattice points a pixel and octave; the matrix is
computed once for a grid, and a batch of independent fields is one sparse product.

As the lattice is fixed, so are the places where an octave vanishes, its lattice points: the standard
deviation over seeds varies from pixel to pixel, and is zero at pixel (0, 0), where lattice points of all
octaves fall together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from brainuad.devices import upload

STRETCH = (1 / math.sqrt(3) - 1) / 2  # plane -> lattice coordinates: u = x + STRETCH * sum(x)
SQUISH = (math.sqrt(3) - 1) / 2  # and back: x = u + SQUISH * sum(u)
NORM = 47.0
GRADIENTS = ((5, 2), (2, 5), (-5, 2), (-2, 5), (5, -2), (2, -5), (-5, -2), (-2, -5))

# Lattice points, relative to a position's rhombus, that can lie within the kernel's radius sqrt(2).
NEIGHBOURS = ((0, 0), (1, 0), (0, 1), (1, 1), (1, -1), (-1, 1), (2, 0), (0, 2))
# The three corners of the position's triangle and at most one of their mirror images lie within it.
CONTRIBUTIONS = 4

# Types of device on which not every supported version of PyTorch has ``embedding_bag``.
LACK_SPARSE_SUM = ("mps",)


def gaussian_noise(
    shape: Sequence[int],
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draw independent standard normal numbers.

    Args:
        shape: Any shape.
        generator: Source of randomness; the draw happens on its device.
        device: Device of the result; the generator's by default.
        dtype: Type of the result; the draw is in float32, so that rounding does not change the random stream.
    """
    source = generator.device if generator is not None else torch.device("cpu")
    return upload(torch.randn(tuple(shape), generator=generator, device=source), device or source).to(dtype)


def simplex_noise(
    shape: Sequence[int],
    *,
    generator: torch.Generator | None = None,
    octaves: int = 6,
    persistence: float = 0.8,
    frequency: float = 64,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Draw one independent simplex noise field a slice (AnoDDPM, Wyatt et al. 2022, section 3.2).

    Every slice has its own permutation table: the order of 256 uniform numbers, drawn from ``generator``.
    With the defaults the fields' standard deviation is about 0.58, not 1.

    Args:
        shape: (B, 1, X, Y) or (B, X, Y).
        generator: Source of randomness. The tables are drawn on its device, so that all devices see the same
            ones, and the fields are computed on ``device``; they agree between devices up to rounding.
        octaves: Number of octaves; each has half the wavelength of the one before.
        persistence: Amplitude of an octave relative to the one before; the first has 1.
        frequency: Wavelength of the first octave in pixels.
        device: Device of the result; the generator's by default.
        dtype: Type of the result; the computation is in float32.

    Raises:
        ValueError: ``shape`` is neither (B, 1, X, Y) nor (B, X, Y).
    """
    shape = tuple(shape)
    if len(shape) != 3 and not (len(shape) == 4 and shape[1] == 1):
        raise ValueError(f"shape must be (B, 1, X, Y) or (B, X, Y), got {shape}")
    source = generator.device if generator is not None else torch.device("cpu")
    target = torch.device(device) if device is not None else source
    order = draw_permutations(shape[0], generator)
    fields = simplex_fields(
        order if target.type in LACK_SPARSE_SUM else upload(order, target),
        (shape[-2], shape[-1]),
        octaves=octaves,
        persistence=persistence,
        frequency=frequency,
    )
    return fields.reshape(shape).to(target, dtype)


def draw_permutations(count: int, generator: torch.Generator | None, length: int = 256) -> Tensor:
    """Draw permutation tables, (count, length) int64: the orders of as many uniform numbers each."""
    source = generator.device if generator is not None else torch.device("cpu")
    return torch.rand((count, length), generator=generator, device=source).argsort(dim=1, stable=True)


def simplex_fields(
    permutations: Tensor, size: tuple[int, int], *, octaves: int = 6, persistence: float = 0.8, frequency: float = 64
) -> Tensor:
    """Evaluate the fields that given permutation tables define; all octaves of a field share its table.

    Octave i adds ``persistence**i * n(y / w, x / w)`` with w = ``frequency / 2**i`` at pixel (x, y): as
    published, the array's last axis is the noise's first coordinate.

    Args:
        permutations: (B, 256) integers, each row a permutation of 0..255.
        size: (X, Y) pixels.
        octaves: Number of octaves.
        persistence: Amplitude of an octave relative to the one before.
        frequency: Wavelength of the first octave in pixels.

    Returns:
        (B, X, Y) float32 on the device of ``permutations``.
    """
    lattice_x, lattice_y, points, weights, gradients = _geometry(
        tuple(size), octaves, float(persistence), float(frequency), str(permutations.device)
    )
    # The published hash: perm[perm[x] + y] picks one of eight gradients by bits 1..3.
    hashed = permutations.gather(1, (permutations[:, lattice_x] + lattice_y) & 255)
    table = gradients[(hashed.T >> 1) & 7].transpose(1, 2).flatten(0, 1)  # (2 V, B)
    fields = F.embedding_bag(points, table, per_sample_weights=weights, mode="sum")
    return fields.T.reshape(len(permutations), *size)


def opensimplex_permutation(seed: int) -> Tensor:
    """Return the (256,) int64 permutation table that OpenSimplex derives from an integer seed.

    The published shuffle: a 64-bit linear congruential generator (Knuth's MMIX constants), three steps of
    warm-up, then one step for every entry from the last to the first.
    """

    def step(state: int) -> int:
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        return state - 2**64 if state >= 2**63 else state  # two's complement, as in the 64-bit original

    for _ in range(3):
        seed = step(seed)
    source = list(range(256))
    permutation = [0] * 256
    for i in reversed(range(256)):
        seed = step(seed)
        chosen = (seed + 31) % (i + 1)
        permutation[i] = source[chosen]
        source[chosen] = source[i]
    return torch.tensor(permutation)


@lru_cache(maxsize=16)
def _geometry(
    size: tuple[int, int], octaves: int, persistence: float, frequency: float, device: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return what does not depend on the seed: the lattice points, the sparse matrix to the pixels, the gradients.

    Returns:
        x and y of the V lattice points, modulo 256 as the hash reads them, (V,) int64 each; and for P = X * Y
        pixels the K = octaves * 4 * 2 rows of the (2 V, B) gradient table that contribute, (P, K) int64, with
        their weights, (P, K) float32; and the eight gradients, (8, 2) float32.
    """
    with torch.inference_mode(False):  # the cache outlives the caller's mode
        axes = [torch.arange(n, dtype=torch.float64) for n in size]
        pixels = torch.cartesian_prod(*axes).flip(1)
        keys, weights = [], []
        for octave in range(octaves):
            key, weight = _octave_geometry(pixels * (2**octave / frequency))
            keys.append(key)
            weights.append(weight * persistence**octave)
        # Lattice points that several octaves share have one gradient, since the octaves share one table.
        lattice, points = torch.unique(torch.cat(keys, dim=1), return_inverse=True)
        rows = torch.stack((2 * points, 2 * points + 1), dim=-1).reshape(len(pixels), -1)
        weight = torch.cat(weights, dim=1).reshape(len(pixels), -1)
        gradients = torch.tensor(GRADIENTS, dtype=torch.float32)
        parts = (lattice // 256, lattice % 256, rows, weight.float(), gradients)
        lattice_x, lattice_y, rows, weight, gradients = (part.to(device) for part in parts)
        return lattice_x, lattice_y, rows, weight, gradients


def _octave_geometry(positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lattice points that positions (P, 2) see and the weights of their gradients.

    Returns:
        Lattice points as ``256 * x + y``, coordinates modulo 256, (P, 4); weights of g_x and g_y, (P, 4, 2).
    """
    cell = (positions + STRETCH * positions.sum(dim=1, keepdim=True)).floor()
    lattice = cell[:, None, :] + torch.tensor(NEIGHBOURS, dtype=torch.float64)
    offset = positions[:, None, :] - (lattice + SQUISH * lattice.sum(dim=2, keepdim=True))
    kernel = (2 - offset.square().sum(dim=2)).clamp(min=0) ** 4 / NORM
    kernel, nearest = kernel.topk(CONTRIBUTIONS, dim=1)
    pair = nearest[:, :, None].expand(-1, -1, 2)
    x, y = (lattice.gather(1, pair).long() & 255).unbind(dim=2)
    return 256 * x + y, kernel[:, :, None] * offset.gather(1, pair)
