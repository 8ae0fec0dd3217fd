"""Registration of a scan to the atlas, and of two scans of a session, by ITK.

It is a separate module so that code without registration, such as training on packed scans, needs no SimpleITK.
Transforms are those of `brainuad.data.placement`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import SimpleITK as sitk

from brainuad.data.placement import atlas_brain, resample
from brainuad.data.volume import RAS_TO_LPS, Volume, corners
from brainuad.errors import ScanFault

_ROUNDING = 1e-3  # cosine between two axes, a twentieth of a degree: 0.2 mm at the far end of a brain


def to_sitk(volume: Volume) -> sitk.Image:
    """Return a SimpleITK image (LPS space) of a volume whose axes are square to each other, as ITK's are.

    Raises:
        ValueError: They are not, by more than rounding: see `on_square_axes`.
    """
    if not _is_square(volume.affine):
        raise ValueError("has axes that are not square to each other")
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.array.transpose(2, 1, 0), dtype=np.float32))
    image.SetSpacing(volume.spacing)
    lps = RAS_TO_LPS @ volume.affine
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection(_nearest_rotation(lps).ravel().tolist())
    return image


def on_square_axes(volume: Volume) -> Volume:
    """Return a volume on axes that are square to each other: itself, or resampled (linearly) where they are not.

    A registration by 12 parameters that was written into a header leaves such axes. The grid's voxels have the scan's
    size, and it holds all of the scan.
    """
    if _is_square(volume.affine):
        return volume
    affine = np.eye(4)
    affine[:3, :3] = _nearest_rotation(volume.affine) * volume.spacing
    corner_voxels = (np.linalg.inv(affine) @ volume.affine @ corners(volume.array.shape))[:3]
    first = np.floor(corner_voxels.min(1))
    affine[:3, 3] = affine[:3, :3] @ first
    x, y, z = (np.ceil(corner_voxels.max(1)) - first).astype(int) + 1
    matrix = np.linalg.inv(volume.affine) @ affine
    return Volume.from_array(resample(volume.array, matrix, (int(x), int(y), int(z)), order=1), affine)


def _is_square(affine: np.ndarray) -> bool:
    """Whether the axes are square to each other but for the rounding of a stored affine."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() < _ROUNDING)


def _nearest_rotation(affine: np.ndarray) -> np.ndarray:
    """Return the axes, ``(3, 3)``, that are square to each other and nearest to an affine's."""
    left, _, right = np.linalg.svd(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0))
    return np.asarray(left @ right)


def register_to_atlas(brain: Volume, *, seed: int = 0) -> np.ndarray:
    """Find the affine transform that lays a brain-extracted scan onto the SRI24 T1 brain.

    Mattes mutual information (Mattes et al. 2003), first rigid, then affine, coarse to fine; moments of mass to start.
    The scan is of any contrast. The seed is that of the metric's random sampling.

    Returns:
        ``(4, 4)`` float64, atlas mm to scan mm.

    Raises:
        ScanFault: Registration fails, as it does where the scan is empty or its brain far off the atlas.
    """
    fixed = to_sitk(atlas_brain())
    try:
        # The atlas has voxels of 2 mm: finer detail in the scan would go unused.
        moving = _averaged(brain, 2)
        start = sitk.CenteredTransformInitializer(
            fixed, moving, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.MOMENTS
        )
        optimise = partial(_optimise, fixed, moving, shrink=(4, 2), sigmas=(2, 1), seed=seed)
        rigid = sitk.Euler3DTransform(optimise(start, sampling=0.05))
        affine = sitk.AffineTransform(rigid.GetMatrix(), rigid.GetTranslation(), rigid.GetCenter())
        return _ras_matrix(sitk.AffineTransform(optimise(affine, sampling=0.1)))
    except RuntimeError as error:
        raise unregistered() from error


def unregistered() -> ScanFault:
    """Return the fault of a scan that cannot be registered to the atlas, in plainer words than ITK's."""
    fault = "could not be registered to the atlas: its voxel size or field of view may be wrong"
    return ScanFault(fault, "Look at the scan and its brain mask")


@contextmanager
def two_itk_threads() -> Iterator[None]:
    """Let ITK compute in two threads on every machine: how many share a sum decides its last digits."""
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(2)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


def _ras_matrix(found: sitk.AffineTransform | sitk.Euler3DTransform) -> np.ndarray:
    """Return the ``(4, 4)`` matrix in RAS mm of a transform in ITK's LPS mm."""
    linear = np.asarray(found.GetMatrix()).reshape(3, 3)
    centre = np.asarray(found.GetCenter())
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = np.asarray(found.GetTranslation()) + centre - linear @ centre
    return RAS_TO_LPS @ matrix @ RAS_TO_LPS


def register_within_session(fixed: Volume, brain: np.ndarray, moving: Volume, *, seed: int = 0) -> np.ndarray:
    """Find how the head moved between two scans of one session, which share scanner space.

    Rigid, Mattes mutual information inside the brain, coarse to fine, from where the scanner says the scans lie.

    Args:
        fixed: One scan, any contrast.
        brain: ``(X, Y, Z)`` bool, its brain.
        moving: The other scan, any contrast, with or without skull.
        seed: Of the metric's random sampling.

    Returns:
        ``(4, 4)`` float64, mm of ``fixed`` to mm of ``moving``; identity where moving would not improve the agreement
        by a hundredth.

    Raises:
        ValueError: Registration fails, as it does where the scans do not overlap.
    """
    # Blocks of 4 mm are the grid on which the two are compared. Finer detail in the other scan would go unused.
    images = _averaged(fixed, 4), _averaged(moving, 2)
    mask = sitk.Cast(_averaged(fixed.with_array(brain), 4) > 0.5, sitk.sitkUInt8)
    still = sitk.Euler3DTransform()
    middle = fixed.affine @ [*np.argwhere(brain).mean(0), 1]
    still.SetCenter((RAS_TO_LPS @ middle)[:3].tolist())
    try:
        moved = sitk.Euler3DTransform(
            _optimise(*images, still, sampling=1.0, shrink=(2, 1), sigmas=(6, 3), seed=seed, mask=mask)
        )
        # negative mutual information: less is better
        before, after = (_metric(1.0, seed, mask, start).MetricEvaluate(*images) for start in (still, moved))
    except RuntimeError as error:
        raise ValueError("could not be registered within its session") from error
    return _ras_matrix(moved) if after < 1.01 * before else np.eye(4)


def _averaged(volume: Volume, spacing: float) -> sitk.Image:
    """Return a volume on square axes, averaged over blocks of at most ``spacing`` mm a side, or of one voxel."""
    image = to_sitk(on_square_axes(volume))
    return sitk.BinShrink(image, [max(1, int(spacing / step)) for step in image.GetSpacing()])


def _optimise(
    fixed: sitk.Image,
    moving: sitk.Image,
    start: sitk.Transform,
    *,
    sampling: float,
    shrink: tuple[int, ...],
    sigmas: tuple[float, ...],
    seed: int,
    mask: sitk.Image | None = None,
) -> sitk.Transform:
    method = _metric(sampling, seed, mask, start)
    method.SetOptimizerAsGradientDescentLineSearch(
        learningRate=1.0, numberOfIterations=60, convergenceMinimumValue=1e-6, convergenceWindowSize=8
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(shrink)
    method.SetSmoothingSigmasPerLevel(sigmas)
    result = method.Execute(fixed, moving)
    return result.GetNthTransform(0) if isinstance(result, sitk.CompositeTransform) else result


def _metric(sampling: float, seed: int, mask: sitk.Image | None, start: sitk.Transform) -> sitk.ImageRegistrationMethod:
    method = sitk.ImageRegistrationMethod()
    method.SetNumberOfWorkUnits(1)  # more would add the metric up in another order each time
    method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=32)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(sampling, seed=seed + 1)  # seed 0 would mean the clock
    if mask is not None:
        method.SetMetricFixedMask(mask)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetInitialTransform(start, inPlace=False)
    return method
