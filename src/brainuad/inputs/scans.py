"""Find the scans in the files and folders that a user gives, and name the outputs of each.

A file that the user names is always a scan. In folders other files are left out: see `left_out`, and
`brainuad.inputs.dicom.series.pick_series` for DICOM.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from brainuad.data.volume import Volume
from brainuad.errors import InputError
from brainuad.inputs.bids import bids_images, derivative_names, is_bids
from brainuad.inputs.contrast import contrast_of
from brainuad.inputs.dicom.series import Series, is_dicom, is_volume, list_series, pick_series
from brainuad.inputs.dicom.volume import read_series
from brainuad.inputs.masks import NIFTI, masks_among

logger = logging.getLogger(__name__)

_OWN_NAMES = frozenset({"run", "dataset_description"})  # files of a whole run, beside those of single scans
_LONGEST_NAME = 150  # bytes; file systems allow 255, and suffixes and temporary prefixes need the rest
_RESULTS = re.compile(r"_(anomaly|reconstruction)$|_desc-(anomaly|reconstruction)_")
_WITH_OTHERS = {"_brain": ("_anomaly",), "_scan": ("_anomaly", "_segmentation")}


@dataclass(frozen=True)
class Scan:
    """One scan to be scored."""

    name: str  # unique within a run, regardless of upper and lower case, and safe as a file name
    source: Path  # NIfTI file, or folder of a DICOM series; absolute
    kind: str  # "nifti", "bids" or "dicom"
    folder: str = ""  # folder of its outputs, relative to the run's output folder; "" for that folder itself
    series: str = ""  # SeriesInstanceUID of a DICOM series
    # why it cannot be opened, or None: an input without a scan, or a DICOM study with no clear series
    fault: InputError | None = None


def find_scans(
    inputs: Iterable[str | Path],
    *,
    modality: str,
    output: str | Path,
    participants: Sequence[str] = (),
    sessions: Sequence[str] = (),
    series: str = "",
) -> list[Scan]:
    """List the scans in files and folders.

    Args:
        inputs: NIfTI files, and folders, which are searched with their subfolders.
        modality: "t1", "t2" or "flair"; in folders, files named after another contrast are left out.
        output: Folder for results. It may lie below an input and is then not searched; it must not hold an input.
        participants: Labels of the participants to take from BIDS data sets; empty means all.
        sessions: Labels of the sessions, likewise.
        series: SeriesInstanceUID of the DICOM series to take.

    Returns:
        Scans with different names, in the order of the inputs and by path within each. They include inputs and DICOM
        studies that cannot be used, each with its ``fault``, which is also logged.

    Raises:
        InputError: ``output`` holds an input, two scans would have the same name, or the only input is faulty.
    """
    found: dict[tuple[str, str, str], Scan] = {}
    given, output, any_bids = [Path(path) for path in inputs], Path(output), False
    for path in given:
        _check_apart(path, output)
        try:
            if not path.is_dir():
                scans = [_as_file(path)]
            elif is_bids(path):
                any_bids = True
                scans = [
                    Scan(NIFTI.sub("", image.name), image, "bids", image.parent.relative_to(path).as_posix())
                    for image in bids_images(path, modality, participants=participants, sessions=sessions)
                ]
            else:
                scans = _in_folder(path, modality, output, series)
        except InputError as error:
            scans = [Scan(NIFTI.sub("", Path(os.path.abspath(path)).name), path, "nifti", fault=error)]
        if any(scan.kind == "bids" for scan in scans):
            _check_outside(path, output)
        for scan in scans:
            source = Path(os.path.abspath(scan.source))
            # One folder given twice counts once. Two links to one file stay two scans.
            place = os.path.realpath(source.parent), source.name, scan.series
            found.setdefault(place, replace(scan, source=source))
    faults = [scan.fault for scan in found.values() if scan.fault]
    if len(faults) == len(found) == 1:
        raise faults[0]
    if (participants or sessions) and not any_bids:
        unknown = "is no BIDS data set (without dataset_description.json), so participants and sessions are unknown"
        remedy = "Give the root of a data set, or leave --participant-label and --session out"
        raise InputError(", ".join(map(str, given)), unknown, remedy)
    for fault in faults:
        logger.warning("%s", fault)
    return _named_apart(_with_series(list(found.values())))


def output_paths(scan: Scan) -> dict[str, str]:
    """Return the paths of a scan's outputs, relative to the folder of the run.

    They are "anomaly", "lesions", "reconstruction", "brain", "sidecar" and "montage"; for DICOM, "segmentation".
    """
    if scan.kind == "bids":
        names = derivative_names(scan.name)
    else:
        kinds = ("anomaly", "lesions", "reconstruction", "brain")
        names = {kind: f"{scan.name}_{kind}.nii.gz" for kind in kinds}
        names |= {"sidecar": f"{scan.name}.json", "montage": f"{scan.name}.png"}
        if scan.kind == "dicom":
            names["segmentation"] = f"{scan.name}_segmentation.dcm"
    return {kind: (Path(scan.folder) / name).as_posix() for kind, name in names.items()}


def open_scan(scan: Scan) -> Volume:
    """Read a scan.

    Raises:
        InputError: Its ``fault``; or as for `brainuad.data.volume.Volume.load`, its ``check_scan`` and
            `brainuad.inputs.dicom.volume.read_series`.
    """
    if scan.fault:
        raise scan.fault
    if scan.kind == "dicom":
        return read_series(scan.source, scan.series)
    volume = Volume.load(scan.source)
    volume.check_scan(scan.source)
    return volume


def _check_apart(given: Path, output: Path) -> None:
    """Refuse an input that lies in the output folder, or is it."""
    if given.is_file() and _real(given) == _real(output):
        fault = "is an input and cannot be the output folder, too"
        raise InputError(given, fault, f"Choose another one, for instance {output.parent / 'results'}")
    if _real(given).is_relative_to(_real(output)):
        fault = f"lies in the output folder {output}, where results must not be mixed with scans"
        raise InputError(given, fault, f"Choose another one, for instance {output / 'results'}")


def _check_outside(root: Path, output: Path) -> None:
    """Refuse an output folder in a BIDS data set of raw scans, except below its ``derivatives``."""
    inside = _real(output).is_relative_to(_real(root))
    if inside and not _real(output).is_relative_to(_real(root) / "derivatives"):
        remedy = f"Choose {root / 'derivatives' / 'brainuad'} or a folder elsewhere"
        raise InputError(output, f"lies in the data set {root}", remedy)


def _as_file(path: Path) -> Scan:
    if not os.path.lexists(path):
        raise InputError(path, "no such file or folder", "Check the path")
    if not NIFTI.search(path.name):
        if is_dicom(path) and (found := list_series([path])):
            return _as_scan(found[0], path.parent)
        if not path.name.lower().endswith((".mgz", ".mgh", ".img", ".hdr")):  # reading it gives the more precise error
            remedy = "Give .nii or .nii.gz files, DICOM files, or a folder"
            raise InputError(path, "is no scan that can be read", remedy)
    return Scan(NIFTI.sub("", path.name), path, "nifti")


def _as_scan(series: Series, folder: Path, fault: InputError | None = None) -> Scan:
    return Scan(Path(os.path.abspath(folder)).name, folder, "dicom", series=series.uid, fault=fault)


def _in_folder(root: Path, modality: str, output: Path, series: str) -> list[Scan]:
    scans, dicom, reasons = [], [], Counter[str]()
    for folder, files in _walk(root, _real(output)):
        unwanted = left_out(files, modality)
        for name in files:
            if not NIFTI.search(name):
                if is_dicom(folder / name):
                    dicom.append(folder / name)
                else:
                    reasons["of another kind"] += 1
            elif name in unwanted:
                reasons[unwanted[name]] += 1
            else:
                scans.append(Scan(NIFTI.sub("", name), folder / name, "nifti"))
    told = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    found = list_series(dicom)
    if found and (series or not scans or any(is_volume(one) for one in found)):
        chosen = [
            _as_scan(one, Path(fault.subject) if fault else one.folder, fault)
            for one, fault in pick_series(found, modality, where=root, uid=series)
        ]
        scans = chosen if series else scans + chosen
    if not scans:
        fault = f"holds no {modality} scan: looked for .nii, .nii.gz and DICOM files in it and all folders below"
        fault += f", and left out files: {told}" if told else ""
        raise InputError(root, fault, "Give a folder with scans, or name the files")
    if told:
        logger.info("%s: %d scan(s) taken, files left out: %s", root, len(scans), told)
    return scans


def left_out(names: Sequence[str], modality: str) -> dict[str, str]:
    """Return which of all ``names`` in a folder are NIfTI files that are not taken as scans, each with the reason."""
    masks, reasons = masks_among(names), {}
    for name in names:
        if not NIFTI.search(name):
            continue
        stem = NIFTI.sub("", name)
        if name in masks or _is_result(stem, names):
            reasons[name] = "named as masks or results"
        elif contrast_of(stem, modality) == "other":
            reasons[name] = "named after another contrast"
    return reasons


def _is_result(stem: str, beside: Sequence[str]) -> bool:
    """Whether a file is named as a result of this package; ``x_brain`` and ``x_scan`` are, beside others of ``x``."""
    if _RESULTS.search(stem.lower()):
        return True
    return any(
        name.startswith(tuple(stem.removesuffix(end) + other for other in others))
        for end, others in _WITH_OTHERS.items()
        if stem.endswith(end)
        for name in beside
    )


def _walk(root: Path, output: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield each folder once, in order, with the names of its files; hidden folders and ``output`` are skipped.

    Links to folders are followed, except to a folder that was visited before.
    """
    visited: set[tuple[int, int]] = set()

    def unreadable(error: OSError) -> None:
        if error.filename is not None and Path(error.filename) == root:
            raise InputError(root, f"cannot be read ({error.strerror})", "Check its permissions") from error
        logger.warning("%s: cannot be read (%s); its scans are missing", error.filename, error.strerror)

    for here, folders, files in os.walk(root, onerror=unreadable, followlinks=True):
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in visited or _real(Path(here)) == output:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield Path(here), sorted(name for name in files if not name.startswith("."))


def _real(path: Path) -> Path:
    """Resolve links. Unlike `pathlib.Path.resolve` this works for circular links, too."""
    return Path(os.path.realpath(path))


def safe_name(text: str) -> str:
    """Return text as a file name that is valid on every file system and safe in every shell."""
    text = "".join(letter if letter.isprintable() else "_" for letter in text)  # surrogates are not
    text = re.sub(r'[<>:"/\\|?*]', "_", text).strip(" .").lstrip("-") or "scan"
    if len(text.encode()) > _LONGEST_NAME:
        text = text.encode()[: _LONGEST_NAME - 9].decode(errors="ignore") + "-" + _digest(text)
    return text


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _with_series(scans: list[Scan]) -> list[Scan]:
    """Give DICOM series of one folder different names that do not identify a patient."""
    shared = Counter(scan.source for scan in scans)
    return [
        replace(scan, name=f"{scan.name}_{_digest(scan.series)}") if shared[scan.source] > 1 else scan for scan in scans
    ]


def _named_apart(scans: list[Scan]) -> list[Scan]:
    """Prefix scans of the same name with the names of their parent folders, as many as needed."""
    groups = defaultdict(list)
    for scan in scans:
        groups[scan.folder, safe_name(scan.name).casefold()].append(scan)
    names: dict[Scan, str] = {}
    for (_, name), group in groups.items():
        reserved = name in _OWN_NAMES
        deepest = 8 if reserved or (len(group) > 1 and group[0].kind != "bids") else 0
        for depth in range(int(reserved), deepest + 1):
            prefixed = [_with_parents(scan, depth) for scan in group]
            if len({text.casefold() for text in prefixed}) == len(group):
                break
        names |= dict(zip(group, prefixed, strict=True))
    taken: dict[tuple[str, str], Scan] = {}
    for scan, name in names.items():
        other = taken.setdefault((scan.folder, name.casefold()), scan)
        if other is not scan:
            fault = f"would be named {name!r} in the results, as {other.source} is"
            raise InputError(scan.source, fault, "Rename one of them, or leave one out")
    return [replace(scan, name=names[scan]) for scan in scans]


def _with_parents(scan: Scan, depth: int) -> str:
    parents = scan.source.absolute().parent.parts[1:]
    return safe_name("_".join([*parents[max(len(parents) - depth, 0) :], scan.name]))
