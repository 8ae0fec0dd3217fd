"""Where the model's grid lies in a scan: resampling onto it and back, and registration to the atlas.

Every transform here is a 4 x 4 matrix in RAS mm that maps *atlas* coordinates to *scan* coordinates: the direction in
which images are resampled onto the atlas.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.resources import as_file, files

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from brainuad.data.sampling import sample_axes
from brainuad.data.volume import Volume

# Centre of the SRI24 brain's bounding box, in mm of the atlas (RAS).
ATLAS_CENTRE = (-119.0, 110.0, 72.5)
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@cache
def atlas_brain() -> Volume:
    """Return the SRI24 T1 brain (Rohlfing et al. 2010) at 2 mm, canonical axes, intensities in [0, 255]."""
    with as_file(files("brainuad.assets") / "sri24_t1_brain_2mm.nii.gz") as path:
        return Volume.load(path)


@dataclass(frozen=True)
class BrainFrame:
    """A regular grid in atlas space.

    Attributes:
        shape: Voxels along right, anterior, superior.
        spacing: Voxel size in mm, the same along every axis.
    """

    shape: tuple[int, int, int]
    spacing: float

    @property
    def affine(self) -> np.ndarray:
        """``(4, 4)`` from voxel indices to atlas mm; the grid is centred on the atlas brain."""
        affine = np.diag([self.spacing] * 3 + [1.0])
        affine[:3, 3] = np.asarray(ATLAS_CENTRE) - self.spacing * (np.asarray(self.shape) - 1) / 2
        return affine

    def to_model(
        self, volume: Volume, atlas_to_scan: np.ndarray | None = None, *, order: int = 3
    ) -> np.ndarray:
        """Resample a scan onto the grid.

        Args:
            volume: The scan.
            atlas_to_scan: ``(4, 4)``; identity (None) for a scan that is in atlas space already.
            order: 3 for images (B-spline, after a Gaussian that keeps detail finer than the grid from aliasing),
                0 for labels (nearest neighbour).

        Returns:
            ``shape`` float32; zero outside the scan.
        """
        matrix = np.linalg.inv(volume.affine) @ _or_identity(atlas_to_scan) @ self.affine
        return resample(volume.array, matrix, self.shape, order=order)

    def to_native(
        self, array: np.ndarray, volume: Volume, atlas_to_scan: np.ndarray | None = None
    ) -> np.ndarray:
        """Resample a map on the grid back onto a scan's voxels: the reverse of :meth:`to_model`.

        Returns:
            The shape of ``volume.array``, float32; zero outside the grid.
        """
        matrix = np.linalg.inv(_or_identity(atlas_to_scan) @ self.affine) @ volume.affine
        return resample_map(array, matrix, volume.array.shape)


def _or_identity(matrix: np.ndarray | None) -> np.ndarray:
    return np.eye(4) if matrix is None else matrix


def resample(array: np.ndarray, matrix: np.ndarray, shape: tuple[int, ...], *, order: int) -> np.ndarray:
    """Sample an ``(X, Y, Z)`` array at ``matrix @ index`` for every index of a grid of ``shape``.

    With ``order`` above 0 and a grid coarser than the array, the array is first smoothed so that the full width at
    half maximum of one voxel grows to that of the coarser one. A matrix that is a whole-voxel shift copies exactly.
    """
    array = np.asarray(array, dtype=np.float32)
    linear, offset = matrix[:3, :3], matrix[:3, 3]
    if np.allclose(linear, np.eye(3), atol=1e-6) and np.allclose(offset, np.rint(offset), atol=1e-4):
        order, offset, linear = 0, np.rint(offset), np.eye(3)
    elif order > 0:
        step = np.linalg.norm(linear, axis=1)  # source voxels per target voxel, along each source axis
        sigma = np.sqrt(np.maximum(step**2 - 1, 0)) / 2.355
        sigma *= (sigma > 0.05).any()
        if _is_parallel(linear, shape):
            steps = np.diag(linear)
            return sample_axes(array, steps, offset, shape, order=order, mode="constant", sigmas=sigma)
        array = ndimage.gaussian_filter(array, sigma, mode="constant")
    # 'constant' would blend cubic samples with zeros only beyond the last voxel, which is what a brain needs.
    return ndimage.affine_transform(
        array, linear, offset, output_shape=shape, order=order, mode="constant", cval=0.0
    )


def _is_parallel(linear: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether two grids have the same axes: to 1e-4 voxels, at the far end of the grid."""
    return bool((np.abs(linear - np.diag(np.diag(linear))) @ shape < 1e-4).all())


def resample_map(array: np.ndarray, matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Sample a map ``(X, Y, Z)`` at ``matrix @ index`` for every index of a grid of ``shape``, linearly.

    Its outermost voxels reach as far as voxels do, half their size beyond their centres, where a scan that is cut off
    there has voxels of its own; beyond are zeros.
    """
    faces = (array[[0, -1]], array[:, [0, -1]], array[:, :, [0, -1]])
    if not any(face.any() for face in faces):
        return resample(array, matrix, shape, order=1)
    wider = np.eye(4)
    wider[:3, 3] = 1
    there = resample(np.pad(array, 1, mode="edge"), wider @ matrix, shape, order=1)
    linear, offset = matrix[:3, :3], matrix[:3, 3]
    if _is_parallel(linear, shape):
        for axis, (step, start, length) in enumerate(zip(np.diag(linear), offset, array.shape, strict=True)):
            place = step * np.arange(shape[axis]) + start
            there[(slice(None),) * axis + ((place < -0.5) | (place > length - 0.5),)] = 0
        return there
    inside = ndimage.affine_transform(
        np.ones(array.shape, np.uint8), linear, offset, output_shape=shape, order=0, mode="grid-constant"
    )
    return there * inside


def to_sitk(volume: Volume) -> sitk.Image:
    """Return a SimpleITK image (LPS space) of a volume whose axes need not be orthogonal to the scanner's."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.array.transpose(2, 1, 0), dtype=np.float32))
    lps = _RAS_TO_LPS @ volume.affine
    spacing = np.asarray(volume.spacing)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    # Rounding in a stored affine can leave axes a hair from orthonormal, which ITK refuses: take the nearest rotation.
    left, _, right = np.linalg.svd(lps[:3, :3] / spacing)
    image.SetDirection((left @ right).ravel().tolist())
    return image


def register_to_atlas(brain: Volume, *, seed: int = 0) -> np.ndarray:
    """Find the affine transform that lays a brain-extracted scan onto the SRI24 T1 brain.

    Mattes mutual information (Mattes et al. 2003), first rigid, then affine, coarse to fine; moments of mass to start.

    Args:
        brain: Brain-extracted scan, zero outside the brain; any contrast.
        seed: Seeds the metric's random sampling.

    Returns:
        ``(4, 4)`` float64, atlas mm to scan mm.

    Raises:
        ValueError: Registration fails, as it does where the scan is empty or its brain far off the atlas.
    """
    try:
        with one_itk_thread():  # more would add the metric up in another order each time
            # The atlas has voxels of 2 mm: finer detail in the scan would go unused.
            return _register(to_sitk(atlas_brain()), _averaged(to_sitk(brain), 2), seed)
    except RuntimeError as error:
        raise ValueError(f"could not be registered to the atlas ({itk_fault(error)})") from error


def itk_fault(error: RuntimeError) -> str:
    """Return what went wrong in ITK, without the source file, class and address that its messages begin with."""
    return str(error).strip().splitlines()[-1].rpartition("): ")[2].rstrip(".")


@contextmanager
def one_itk_thread() -> Iterator[None]:
    """Let ITK compute in one thread, for results that do not differ in their last digits from run to run."""
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


def _register(fixed: sitk.Image, moving: sitk.Image, seed: int) -> np.ndarray:
    start = sitk.CenteredTransformInitializer(
        fixed, moving, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.MOMENTS
    )
    rigid = sitk.Euler3DTransform(
        _optimise(fixed, moving, start, sampling=0.05, shrink=(4, 2), sigmas=(2, 1), seed=seed)
    )
    affine = sitk.AffineTransform(3)
    affine.SetCenter(rigid.GetCenter())
    affine.SetMatrix(rigid.GetMatrix())
    affine.SetTranslation(rigid.GetTranslation())
    return _ras_matrix(
        sitk.AffineTransform(
            _optimise(fixed, moving, affine, sampling=0.1, shrink=(4, 2), sigmas=(2, 1), seed=seed)
        )
    )


def _ras_matrix(found: sitk.AffineTransform | sitk.Euler3DTransform) -> np.ndarray:
    """Return the ``(4, 4)`` matrix in RAS mm of a transform in ITK's LPS mm."""
    linear = np.asarray(found.GetMatrix()).reshape(3, 3)
    centre = np.asarray(found.GetCenter())
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = np.asarray(found.GetTranslation()) + centre - linear @ centre
    return _RAS_TO_LPS @ matrix @ _RAS_TO_LPS


def register_within_session(fixed: Volume, brain: np.ndarray, moving: Volume, *, seed: int = 0) -> np.ndarray:
    """Find how the head moved between two scans of one session, which share scanner space.

    Rigid, Mattes mutual information inside the brain, coarse to fine, from where the scanner says the scans lie.

    Args:
        fixed: One scan, any contrast.
        brain: ``(X, Y, Z)`` bool, its brain.
        moving: The other scan, any contrast, with or without skull.
        seed: Seeds the metric's random sampling.

    Returns:
        ``(4, 4)`` float64, mm of ``fixed`` to mm of ``moving``; identity where moving would not improve the agreement
        by a hundredth.

    Raises:
        ValueError: Registration fails, as it does where the scans do not overlap.
    """
    # Blocks of 4 mm are the grid on which the two are compared. Finer detail in the other scan would go unused.
    images = _averaged(to_sitk(fixed), 4), _averaged(to_sitk(moving), 2)
    mask = sitk.Cast(_averaged(to_sitk(fixed.with_array(brain)), 4) > 0.5, sitk.sitkUInt8)
    still = sitk.Euler3DTransform()
    middle = fixed.affine @ [*np.argwhere(brain).mean(0), 1]
    still.SetCenter((_RAS_TO_LPS @ middle)[:3].tolist())
    try:
        with one_itk_thread():
            moved = sitk.Euler3DTransform(
                _optimise(*images, still, sampling=1.0, shrink=(2, 1), sigmas=(6, 3), seed=seed, mask=mask)
            )
            # negative mutual information: less is better
            before, after = (
                _metric(1.0, seed, mask, start).MetricEvaluate(*images) for start in (still, moved)
            )
    except RuntimeError as error:
        raise ValueError(f"could not be registered within its session ({itk_fault(error)})") from error
    return _ras_matrix(moved) if after < 1.01 * before else np.eye(4)


def _averaged(image: sitk.Image, spacing: float) -> sitk.Image:
    """Return an image averaged over blocks of at most ``spacing`` mm a side, or of one voxel."""
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


def _metric(
    sampling: float, seed: int, mask: sitk.Image | None, start: sitk.Transform
) -> sitk.ImageRegistrationMethod:
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=32)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(sampling, seed=seed + 1)  # seed 0 would mean the clock
    if mask is not None:
        method.SetMetricFixedMask(mask)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetInitialTransform(start, inPlace=False)
    return method


def alignment(brain_on_grid: np.ndarray, frame: BrainFrame) -> float:
    """Return Pearson's correlation of a registered brain with the atlas, inside the atlas brain (-1 .. 1)."""
    atlas = frame.to_model(atlas_brain(), order=1)
    inside = atlas > 0
    return float(np.corrcoef(atlas[inside], brain_on_grid[inside])[0, 1])
