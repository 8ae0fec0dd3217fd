"""Intensity augmentation of training slices.

The augmentation is TorchIO's: gamma, bias field, blur and ghosting with that library's default ranges, in
that order, on the *volume*. Only one axial slice of the result is needed, and it can be had without the rest:
gamma and bias field act voxel by voxel, and blur and ghosting are linear maps along one axis at a time. So
with the row ``w`` of the maps along z that belongs to the wanted slice, and the products ``A`` and ``B`` of
the maps along x and y,

    slice = A (sum_z w[z] * pointwise(volume)[:, :, z]) B^T

which equals transforming the whole volume and slicing it, at a small fraction of the work.

There are two ways to compute it. ``augmented_slices`` takes only the axial slices that reach the result, which suits a
processor: of most volumes that is one. ``dense_augmented_slices`` takes all of them. Its shapes do not depend on what
was drawn, so that a CUDA graph can hold it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from brainuad.devices import upload

PROBABILITIES = (0.5, 0.25, 0.25, 0.5)  # of gamma, bias field, blur and ghosting
LOG_GAMMA_LIMIT = 0.3
BIAS_ORDER, BIAS_LIMIT = 3, 0.5
BLUR_STD_LIMIT = 2.0
GHOST_RANGE, GHOST_INTENSITY_RANGE = (4, 10), (0.5, 1.0)
# (a, b, c) of every monomial x^a y^b z^c of the bias field, in TorchIO's order of coefficients
BIAS_POWERS = tuple(
    (a, b, c) for a in range(BIAS_ORDER + 1) for b in range(BIAS_ORDER + 1 - a) for c in range(BIAS_ORDER + 1 - a - b)
)
NEGLIGIBLE_WEIGHT = 1e-7


class Augmentations(NamedTuple):
    """Parameters of a batch of augmented volumes.

    Attributes:
        gamma: (B,) exponents of the intensities; 1 changes nothing.
        bias: (B, 20) coefficients of the bias field's monomials ``BIAS_POWERS``; 0 for none.
        blur_std: (B, 3) standard deviations of the Gaussian along x, y, z in voxels; 0 for none.
        num_ghosts: (B,) int64 n: every n-th plane of k-space is weakened; 0 for none.
        ghost_axis: (B,) int64, axis of those planes: 0, 1 or 2.
        ghost_intensity: (B,) fractions by which they are weakened.
    """

    gamma: Tensor
    bias: Tensor
    blur_std: Tensor
    num_ghosts: Tensor
    ghost_axis: Tensor
    ghost_intensity: Tensor


def draw_uniform(count: int, generator: torch.Generator) -> Tensor:
    """Draw the numbers that decide how volumes are augmented: (count, 31) float64 in [0, 1).

    They are four gates, seven scalars, then the coefficients of the bias field.
    """
    columns = 11 + len(BIAS_POWERS)
    return torch.rand(count, columns, generator=generator, device=generator.device, dtype=torch.float64)


def augmentations_of(uniform: Tensor) -> Augmentations:
    """Return the augmentations that ``draw_uniform``'s numbers stand for, with TorchIO's default ranges."""
    bent, biased, blurred, ghosted = (uniform[:, place] < limit for place, limit in enumerate(PROBABILITIES))
    ghosts, axis, intensity = uniform[:, 8:11].unbind(1)
    low, high = GHOST_INTENSITY_RANGE
    fewest, most = GHOST_RANGE
    return Augmentations(
        gamma=torch.where(bent, torch.exp(LOG_GAMMA_LIMIT * (2 * uniform[:, 4] - 1)), 1.0),
        bias=torch.where(biased[:, None], BIAS_LIMIT * (2 * uniform[:, 11:] - 1), 0.0),
        blur_std=torch.where(blurred[:, None], BLUR_STD_LIMIT * uniform[:, 5:8], 0.0),
        num_ghosts=torch.where(ghosted, fewest + (ghosts * (most + 1 - fewest)).long(), 0),
        ghost_axis=(3 * axis).long(),
        ghost_intensity=low + (high - low) * intensity,
    )


def augmented_slices(images: Tensor, indices: Tensor, slices: Tensor, drawn: Augmentations) -> Tensor:
    """Return axial slice ``slices[i]`` of volume ``indices[i]``, each augmented by its own parameters.

    Only the slices that reach the result through blur or ghosting along z are computed.

    Args:
        images: (N, X, Y, Z) float32, on any device.
        indices: (B,) int64 volume numbers, on the CPU.
        slices: (B,) int64 z indices, on the CPU.
        drawn: B of them, on the CPU.

    Returns:
        (B, X, Y) float32, on the device of ``images``.
    """
    device, lengths = images.device, images.shape[1:]
    along_x, along_y, along_z = (axis_operators(lengths[axis], axis, drawn) for axis in range(3))
    if along_z is None:
        weights = nn.functional.one_hot(slices, lengths[2]).float()
    else:
        weights = along_z[torch.arange(len(slices)), slices]
    sample, z = torch.nonzero(weights.abs() > NEGLIGIBLE_WEIGHT, as_tuple=True)
    exponents = drawn.gamma.float()
    bent, biased = exponents != 1, drawn.bias.any(dim=1)
    # ordered by gamma alone, gamma and bias, bias alone, neither: so each finds its planes side by side
    group = torch.where(bent, biased.long(), 3 - biased.long())[sample]
    order = group.argsort(stable=True)
    sample, z = sample[order], z[order]
    bias_start, gamma_stop, bias_stop = group.bincount(minlength=4).cumsum(0)[:3].tolist()
    mixture = torch.zeros(len(slices), len(sample))
    mixture[sample, torch.arange(len(sample))] = weights[sample, z]

    volume_and_z = upload(torch.stack([indices[sample], z]), device)
    planes = images[volume_and_z[0], :, :, volume_and_z[1]]
    # matrix products keep single precision even inside a training step's autocast
    with torch.autocast(device.type, enabled=False):
        if gamma_stop:
            which = slice(0, gamma_stop)
            planes[which] = gamma(planes[which], upload(exponents[sample[which], None, None], device))
        if bias_start < bias_stop:
            which = slice(bias_start, bias_stop)
            planes[which] *= bias_fields(lengths, drawn.bias[sample[which]].float(), z[which], device)
        result = (upload(mixture, device) @ planes.flatten(1)).unflatten(1, lengths[:2])
        if along_x is not None:
            result = upload(along_x, device) @ result
        if along_y is not None:
            result = result @ upload(along_y, device).mT
    return result


def axis_operators(length: int, axis: int, drawn: Augmentations) -> Tensor | None:
    """Return blur, then ghosting along ``axis`` as matrices: (B, length, length) float32, on the CPU.

    Where neither acts on a volume, its matrix is the identity; where neither acts on any, the result is None.
    """
    stds = drawn.blur_std[:, axis]
    blurred, ghosted = stds > 0, (drawn.num_ghosts > 0) & (drawn.ghost_axis == axis)
    if not (blurred | ghosted).any():
        return None
    operators = torch.eye(length).repeat(len(stds), 1, 1)
    if blurred.any():
        operators[blurred] = blur_operators(length, stds[blurred]).float()
    if ghosted.any():
        ghosting = ghosting_operators(length, drawn.num_ghosts[ghosted], drawn.ghost_intensity[ghosted])
        # in double precision, which autocast leaves alone
        operators[ghosted] = (ghosting @ operators[ghosted].double()).float()
    return operators


def gamma(images: Tensor, exponents: Tensor) -> Tensor:
    """Return ``|images| ** exponents`` with the sign of ``images`` (``torchio.Gamma``); background 0 stays 0."""
    return torch.copysign(images.abs() ** exponents, images)


def bias_fields(shape: Sequence[int], coefficients: Tensor, slices: Tensor, device: torch.device) -> Tensor:
    """Return planes of multiplicative bias fields, ``exp`` of polynomials of third order (``torchio.BiasField``).

    Coordinates run from -1 to 1 over the volume. After Van Leemput et al. 1999, as in Sudre et al. 2017.

    Args:
        shape: (X, Y, Z) of the volumes.
        coefficients: (R, 20), one for each monomial of ``BIAS_POWERS``, on the CPU.
        slices: (R,) int64, the axial slice at which to evaluate each field, on the CPU.
        device: Where the planes are wanted.

    Returns:
        (R, X, Y) float32 on ``device``.
    """
    x, y, z = (_coordinate_powers(length) for length in shape)
    a, b, c = torch.tensor(BIAS_POWERS).T
    in_plane = torch.zeros(len(slices), BIAS_ORDER + 1, BIAS_ORDER + 1)
    # several monomials differ in their power of z only
    in_plane.index_put_((torch.arange(len(slices))[:, None], a, b), coefficients * z[slices][:, c], accumulate=True)
    return (upload(x, device) @ upload(in_plane, device) @ upload(y, device).T).exp()


def _coordinate_powers(length: int) -> Tensor:
    """Return (length, order + 1): powers 0, 1, ... of the centred coordinate in [-1, 1]."""
    coordinate = torch.arange(length, dtype=torch.float32) - (length - 1) / 2
    coordinate = coordinate / max((length - 1) / 2, 0.5)
    return coordinate[:, None] ** torch.arange(BIAS_ORDER + 1)


def blur_operators(length: int, stds: Tensor) -> Tensor:
    """Return Gaussian blurs along an axis as matrices (``torchio.Blur``, scipy's filter).

    The kernel is cut off at four standard deviations; the signal is mirrored at its ends (c b a | a b c).

    Args:
        length: Voxels along the axis.
        stds: (K,) float64, standard deviations in voxels, above 0.

    Returns:
        (K, length, length) float64.
    """
    radii = (4 * stds + 0.5).long()
    largest = int(radii.max())
    offsets = torch.arange(-largest, largest + 1)
    kernels = torch.exp(-0.5 * (offsets / stds[:, None]) ** 2) * (offsets.abs() <= radii[:, None])
    kernels = kernels / kernels.sum(dim=1, keepdim=True)
    # period 2 * length; the second half runs backwards
    source = (torch.arange(length)[:, None] + offsets) % (2 * length)
    source = torch.where(source < length, source, 2 * length - 1 - source)
    operators = torch.zeros(len(stds), length, length, dtype=torch.float64)
    shape = (len(stds), length, len(offsets))
    return operators.scatter_add_(2, source.expand(shape), kernels[:, None].expand(shape))


def ghosting_operators(length: int, num_ghosts: Tensor, intensities: Tensor) -> Tensor:
    """Return ghosting along an axis as matrices (``torchio.Ghosting``, ``restore=None``).

    Every ``num_ghosts``-th plane of k-space, counted from the most negative frequency, is multiplied by
    ``1 - intensity``; the plane of frequency 0 is left alone. A product in k-space is a circular convolution
    here, and the real part of the result is convolution with the real part of the kernel.

    Args:
        length: Voxels along the axis.
        num_ghosts: (K,) int64, above 0.
        intensities: (K,) float64.

    Returns:
        (K, length, length) float64.
    """
    positions = torch.arange(length)
    weakened = positions % num_ghosts[:, None] == 0
    weakened[:, length // 2] = False
    kernels = torch.fft.ifft(torch.fft.ifftshift(1 - weakened * intensities[:, None], dim=1)).real
    return kernels[:, (positions[:, None] - positions) % length]


def dense_augmented_slices(images: Tensor, indices: Tensor, slices: Tensor, uniform: Tensor) -> Tensor:
    """Return what ``augmented_slices`` does, up to rounding, in operations of fixed shape.

    Args:
        images: (N, X, Y, Z) float32.
        indices: (B,) int64 volume numbers, on the same device.
        slices: (B,) int64 z indices, there too.
        uniform: (B, 31) float32, what ``draw_uniform`` gave, there too.

    Returns:
        (B, X, Y) float32.
    """
    lengths = tuple(images.shape[1:])
    fixed = _fixed(lengths, str(images.device))
    drawn = augmentations_of(uniform)
    with torch.autocast(images.device.type, enabled=False):
        along_x, along_y, along_z = (
            _dense_operators(length, axis, drawn, fixed.ghosts[axis]) for axis, length in enumerate(lengths)
        )
        weights = along_z[torch.arange(len(slices), device=slices.device), slices]
        volumes = gamma(images[indices], drawn.gamma[:, None, None, None])
        cube = drawn.bias.new_zeros(len(slices), *[BIAS_ORDER + 1] * 3)
        a, b, c = fixed.powers
        cube[:, a, b, c] = drawn.bias
        field = torch.einsum("nabc,xa,yb,zc->nxyz", cube, *fixed.coordinates).exp()
        mixed = torch.einsum("nxyz,nxyz,nz->nxy", volumes, field, weights)
        return along_x @ mixed @ along_y.mT


class _Fixed(NamedTuple):
    """What dense augmentation needs on a device and must not be sent there again, which a graph could not hold.

    Attributes:
        powers: Of x, y and z in each monomial of the bias field, (20,) int64 each.
        coordinates: By axis, see ``_coordinate_powers``.
        ghosts: By axis, (7, length): what ghosting of intensity 1 takes away, a circular kernel a number of ghosts.
    """

    powers: tuple[Tensor, ...]
    coordinates: tuple[Tensor, ...]
    ghosts: tuple[Tensor, ...]


@lru_cache(maxsize=8)
def _fixed(lengths: tuple[int, ...], device: str) -> _Fixed:
    fewest, most = GHOST_RANGE
    numbers = torch.arange(fewest, most + 1)
    ghosts = []
    for length in lengths:
        all_of_it = torch.ones(len(numbers), dtype=torch.float64)
        left = ghosting_operators(length, numbers, all_of_it)
        ghosts.append((torch.eye(length, dtype=torch.float64) - left)[:, :, 0].float().to(device))
    return _Fixed(
        tuple(torch.tensor(powers).to(device) for powers in zip(*BIAS_POWERS, strict=True)),
        tuple(_coordinate_powers(length).to(device) for length in lengths),
        tuple(ghosts),
    )


def _dense_operators(length: int, axis: int, drawn: Augmentations, ghosts: Tensor) -> Tensor:
    """Return what ``axis_operators`` does, (B, length, length) on the device of what was drawn."""
    places = torch.arange(length, device=ghosts.device)
    stds = drawn.blur_std[:, axis].clamp(min=1e-3)[:, None, None]
    radii = (4 * stds + 0.5).floor()

    def weight(offset: Tensor) -> Tensor:
        return torch.exp(-0.5 * (offset / stds) ** 2) * (offset.abs() <= radii)

    here, there = places[:, None], places[None]
    # what lies beyond an end is the signal mirrored there; no kernel reaches beyond both
    blur = weight(there - here) + weight(-1 - there - here) + weight(2 * length - 1 - there - here)
    blur = blur / blur.sum(2, keepdim=True)
    ghosted = (drawn.num_ghosts > 0) & (drawn.ghost_axis == axis)
    intensity = torch.where(ghosted, drawn.ghost_intensity, 0.0)[:, None, None]
    kernel = ghosts[drawn.num_ghosts - GHOST_RANGE[0]]  # without ghosts any, for its intensity is 0
    return blur - intensity * (kernel[:, (here - there) % length] @ blur)
