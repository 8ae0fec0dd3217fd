"""Is a cohort fit for use? Everything wrong with its lists and files, found before a long run finds it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from brainuad.data.cohort import HEALTHY_SET, Case, find_layout, manifest_cases, paper_folds, read_paper_layout
from brainuad.data.intensity import on_zero
from brainuad.data.leaks import find_leaks
from brainuad.data.packed import is_packed, read_packed
from brainuad.data.volume import PLACEMENT_TOLERANCE, Volume
from brainuad.errors import InputError, remedy_of
from brainuad.files import sha256
from brainuad.processes import process_pool

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Problem:
    """Something wrong with a cohort."""

    severity: str  # "error" where a run would fail or its figures be wrong, "warning" where it would go on
    path: str  # file or folder at fault
    fault: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.path}: {self.fault}. {self.remedy}"


def check_data_dir(
    source: str | Path,
    modality: str,
    fold: int | None = None,
    *,
    num_workers: int = 1,
    progress: Progress = lambda done, total: None,
) -> list[Problem]:
    """Check the paper's data layout or a manifest: the lists, then every file they name, once.

    Args:
        source: ``DATA_DIR``, a manifest ending in .csv, or packed data ending in .npz.
        modality: "t1", "t2" or "flair"; a manifest does not depend on it.
        fold: One cross-validation fold of the paper's layout, or None for all that are there.
        num_workers: Processes that read files.
        progress: Called with the number of scans done and of all scans.

    Returns:
        All that was found, in the order of the lists; nothing is raised for what a user's files hold.
    """
    path = Path(source)
    problems: list[Problem] = []
    cases: list[Case] = []
    try:
        if is_packed(path):
            read_packed(path)
        elif path.suffix.lower() == ".csv":
            cases = manifest_cases(path)
            problems += _leak_problems(cases, path)
        else:
            splits = find_layout(path) / "splits"
            for number in paper_folds(path) or [0] if fold is None else [fold]:
                fold_cases, fold_problems = _read_fold(path, splits, modality, number, training=fold is not None)
                cases += fold_cases
                problems += fold_problems
    except InputError as error:
        problems.append(_from_error(error))
    # test sets, and the subjects that folds share, come up once a fold
    return list(dict.fromkeys(problems)) + check_files(cases, num_workers=num_workers, progress=progress)


def check_files(
    cases: Iterable[Case], *, num_workers: int = 1, progress: Progress = lambda done, total: None
) -> list[Problem]:
    """Check the files of every case; those that share all files are checked once."""
    unique = list({(case.image, case.mask, case.lesion): case for case in cases}.values())
    problems: list[Problem] = []
    with ExitStack() as stack:
        checked: Iterator[list[Problem]] = map(check_case, unique)
        if num_workers > 1 and len(unique) > 1:
            checked = stack.enter_context(process_pool(min(num_workers, len(unique)))).map(check_case, unique)
        for done, found in enumerate(checked, start=1):
            problems += found
            progress(done, len(unique))
    return list(dict.fromkeys(problems))


def check_case(case: Case) -> list[Problem]:
    """Read one case's files and return what is wrong with them, each alone and together."""
    problems: list[Problem] = []
    volumes: dict[Path, Volume] = {}
    for path in filter(None, (case.image, case.mask, case.lesion)):
        try:
            volumes[path] = Volume.load(path)
        except InputError as error:
            problems.append(_from_error(error))
    image, mask = volumes.get(case.image), volumes.get(case.mask)
    if image is not None and image.array.min() == image.array.max():
        constant = f"is constant ({image.array.flat[0]:g})"
        problems.append(_error(case.image, constant, "Convert the scan again"))
        image = None
    try:
        if image is not None:
            on_zero(image.array)
    except ValueError as error:
        problems.append(_error(case.image, str(error), remedy_of(error, "A run would refuse it")))
    if mask is not None and not mask.inside.any():
        problems.append(_error(case.mask, "is empty: no voxel above 0.5", "Extract the brain again"))
    elif mask is not None and not ((mask.array == 0) | (mask.array == mask.array.max())).all():
        remedy = "Voxels above 0.5 count as brain; check that this is meant"
        problems.append(_warning(case.mask, "is not binary", remedy))
    if image is not None and mask is not None:
        problems += _placement_problems(case.image, image, case.mask, mask)
    if case.lesion in volumes:
        problems += _lesion_problems(case.lesion, volumes[case.lesion], case.mask, mask)
    if case.label and case.split == "train":
        remedy = "Train on healthy scans only: move it to test"
        problems.append(_warning(case.image, f"is a training scan with label {case.label}", remedy))
    if case.label and case.split != "train" and case.lesion is None:
        remedy = "Name its lesion mask, or expect no Dice for it"
        problems.append(_warning(case.image, f"has label {case.label} but no lesion mask", remedy))
    if not case.label and case.lesion is not None:
        remedy = "Give it label 1, or leave out the lesion mask; it is not taken for healthy"
        problems.append(_warning(case.image, "has label 0, healthy, and a lesion mask", remedy))
    return problems


def _read_fold(
    data_dir: Path, splits: Path, modality: str, fold: int, *, training: bool
) -> tuple[list[Case], list[Problem]]:
    """Return a fold's cases and what is wrong with its lists."""
    try:
        cases, notes = read_paper_layout(data_dir, modality=modality, fold=fold, training=training)
    except InputError as error:
        return [], [_from_error(error)]
    problems = [_warning(note.subject, note.fault, note.remedy) for note in notes]
    return cases, problems + _leak_problems(cases, splits, f" (fold {fold})")


def _leak_problems(cases: Sequence[Case], path: Path, fold: str = "") -> list[Problem]:
    """Report subjects in two splits as errors, and images listed twice in one as warnings; then copies of images."""
    known = find_leaks(cases)
    copies = [leak for leak in find_leaks(_by_contents(cases)) if leak not in known]
    problems = []
    for leak in (*known, *copies):
        fault = f"{leak}{fold if leak.dataset == HEALTHY_SET else ''}"
        if leak in copies:
            fault += ", by copies of an image"
            remedy = "Keep one of them: nothing but this check sees copies"
        elif leak.duplicated:
            remedy = "Counted once unless datamodule.cfg.leak_free=false"
        else:
            remedy = "Remove its rows from all splits but one; training leaves them out itself unless "
            remedy += "datamodule.cfg.leak_free=false"
        problems.append((_warning if leak.duplicated else _error)(path, fault, remedy))
    return problems


def _by_contents(cases: Sequence[Case]) -> list[Case]:
    """Return the cases with one path for all images of the same contents; only files of one size are compared."""
    paths = {case.image: case.image for case in cases}
    sizes: dict[int, list[Path]] = {}
    for path in paths:
        with suppress(OSError):
            sizes.setdefault(path.stat().st_size, []).append(path)
    for alike in sizes.values():
        first: dict[str, Path] = {}
        for path in alike if len(alike) > 1 else ():
            with suppress(InputError):
                paths[path] = first.setdefault(sha256(path), path)
    return [replace(case, image=paths[case.image]) for case in cases]


def _placement_problems(image_path: Path, image: Volume, mask_path: Path, mask: Volume) -> Iterator[Problem]:
    """Compare the grids of an image and its mask, and look at the image inside the mask."""
    if image.array.shape != mask.array.shape:
        yield _shape_error(mask_path, mask, image_path, image)
        return
    yield from _grid_problems(mask_path, mask, image_path, image)
    brain = image.array[mask.inside]
    if brain.size and brain.min() == brain.max():
        yield _error(image_path, f"is constant inside the brain mask ({brain[0]:g})", "Check image and mask")


def _grid_problems(path: Path, label: Volume, other_path: Path, other: Volume) -> Iterator[Problem]:
    """Compare the places and file axes of two volumes of one shape; each matters to one of two loaders."""
    distance = label.distance_to(other)
    if distance > PLACEMENT_TOLERANCE:
        remedy = (
            "Refused with datamodule.cfg.affine=used: resample it, "
            "or copy the other's affine if only the header differs"
        )
        yield _warning(path, f"lies up to {distance:.1f} mm from {other_path.name} by its affine", remedy)
    if label.file_orientation != other.file_orientation:
        axes = f"is stored in the axes {label.file_orientation}, {other_path.name} in {other.file_orientation}"
        yield _warning(path, axes, "Refused with datamodule.cfg.affine=ignored: store both alike")


def _lesion_problems(lesion_path: Path, lesion: Volume, mask_path: Path, mask: Volume | None) -> Iterator[Problem]:
    """Look at a lesion mask, alone and inside the brain mask (None where that cannot be read)."""
    voxels = lesion.inside
    if (lesion.array != np.rint(lesion.array)).any():
        yield _warning(lesion_path, "holds interpolated values", "Voxels above 0.5 count as lesion")
    if fault := lesion.outline_fault():
        yield _error(lesion_path, fault, "Give the outline of the lesions")
    if not voxels.any():
        yield _warning(lesion_path, "is empty: no voxel above 0.5", "Dice and AUPRC are undefined for it")
    if mask is None:
        return
    if lesion.array.shape != mask.array.shape:
        yield _shape_error(lesion_path, lesion, mask_path, mask)
        return
    yield from _grid_problems(lesion_path, lesion, mask_path, mask)
    outside = int((voxels & ~mask.inside).sum())
    if outside == 0:
        return
    share = f"{outside} of {int(voxels.sum())} lesion voxels lie outside the brain mask"
    if outside == voxels.sum():
        yield _error(lesion_path, share, "Lesion and brain mask do not belong together")
    else:
        yield _warning(lesion_path, share, "They count as missed; widen the brain mask if it is too tight")


def _shape_error(path: Path, volume: Volume, other_path: Path, other: Volume) -> Problem:
    fault = f"has shape {volume.array.shape}, but {other_path} has {other.array.shape}"
    return _error(path, fault, "Bring both onto one grid")


def _from_error(error: InputError) -> Problem:
    return _error(error.subject, error.fault, error.remedy)


def _error(path: str | Path, fault: str, remedy: str) -> Problem:
    return Problem("error", str(path), fault, remedy)


def _warning(path: str | Path, fault: str, remedy: str) -> Problem:
    return Problem("warning", str(path), fault, remedy)
