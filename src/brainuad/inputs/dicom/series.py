"""Group DICOM files into series by their headers, and choose the series to score."""

from __future__ import annotations

import logging
import os
import re
import struct
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pydicom
from pydicom.config import disable_value_validation
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_file_meta_info
from pydicom.uid import DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian

from brainuad.errors import InputError
from brainuad.inputs.contrast import contrast_of

logger = logging.getLogger(__name__)

_FEWEST_SLICES = 10  # a series with fewer images is a localiser
_TAGS = [
    "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "ProtocolName",
    "Modality", "ImageType", "Rows", "Columns", "NumberOfFrames", "ImageOrientationPatient", "ImagePositionPatient",
    "EchoTime", "RepetitionTime", "InversionTime", "ContrastBolusAgent",
]  # fmt: skip
# Errors of pydicom on files that are damaged or not DICOM.
_DAMAGE = (OSError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError, NotImplementedError,
           OverflowError, RecursionError, struct.error, BytesLengthException, InvalidDicomError)  # fmt: skip


@dataclass(frozen=True)
class Slice:
    """One file of a series: its path and the fields of its header."""

    path: Path
    instance: str
    frames: int
    rows: int
    columns: int
    orientation: tuple[float, ...]
    position: tuple[float, ...]
    syntax: str


@dataclass(frozen=True)
class Series:
    """A series of images, described by the header of its first file."""

    uid: str  # SeriesInstanceUID
    study: str  # StudyInstanceUID
    number: str  # SeriesNumber, or ""
    description: str  # SeriesDescription, else ProtocolName
    modality: str  # "MR", "CT", "SEG" ...
    kind: str  # ImageType, joined by spaces
    echo: float  # echo time in ms, or NaN
    repetition: float  # repetition time in ms, or NaN
    inversion: float  # inversion time in ms, or NaN
    agent: bool  # whether a contrast agent was given
    slices: tuple[Slice, ...]  # its files, in the order given

    @property
    def count(self) -> int:
        """Number of images."""
        return sum(part.frames for part in self.slices)

    @property
    def folder(self) -> Path:
        """The deepest folder that holds all its files, directly or in subfolders."""
        return Path(os.path.commonpath([part.path.parent for part in self.slices]))

    def __str__(self) -> str:
        """Describe the series in one line, for a user who has to choose."""
        times = f"TE {self.echo:.4g} ms, TR {self.repetition:.4g} ms"
        text = f"{self.modality} {self.description!r}, {self.count} images, {times}"
        return f"{self.uid} ({'number ' + self.number + ', ' if self.number else ''}{text})"


def is_dicom(path: Path) -> bool:
    """Return whether a file is DICOM by its first bytes. Old files have no preamble."""
    if not path.is_file():  # opening a pipe would wait for ever
        return False
    try:
        with path.open("rb") as file:
            start = file.read(132)
    except OSError:
        return False
    return start[128:] == b"DICM" or start[:4] in (b"\x08\x00\x05\x00", b"\x08\x00\x08\x00", b"\x08\x00\x00\x00")


def list_series(files: Iterable[Path]) -> list[Series]:
    """Group DICOM images by series, in the order of their first files. Other DICOM files and copies are left out.

    Images with one SOPInstanceUID at several positions are no copies: some anonymisers give all images the same UID.
    A warning names each file that cannot be read.
    """
    found: dict[str, Series] = {}
    parts: dict[str, dict[tuple[object, ...], Slice]] = defaultdict(dict)
    copies = 0
    for path in files:
        try:
            with disable_value_validation():  # pydicom's warnings about odd but usable values
                series = _read_header(path)
        except _DAMAGE as error:
            logger.warning("%s: left out, for its DICOM header cannot be read (%s)", path, one_line(error))
            continue
        if series is not None:
            found.setdefault(series.uid, series)
            part = series.slices[0]
            copies += parts[series.uid].setdefault((part.instance, part.position), part) is not part
    if copies:
        logger.info("%d copies of DICOM images left out", copies)
    return [replace(series, slices=tuple(parts[uid].values())) for uid, series in found.items()]


def pick_series(
    found: Sequence[Series], modality: str, *, where: str | Path, uid: str = ""
) -> Sequence[tuple[Series, InputError | None]]:
    """Choose the series to score: one of each study.

    It is the study's only MR volume, else the only one of the modality by description or timing. Where several
    remain, it is the first of them with an error that names the folder and lists them. A ``uid`` takes that series,
    whatever the others are. ``where`` they all came from is for error messages.

    Raises:
        InputError: There is no MR volume, or none with this UID.
    """
    if uid:
        if chosen := [(series, None) for series in found if series.uid == uid]:
            return chosen
        raise InputError(where, f"holds no series {uid!r}", _choices(found))
    studies = defaultdict(list)
    for series in found:
        if is_volume(series):
            studies[series.study].append(series)
    if not studies:
        listed = "; ".join(map(str, found[:10]))
        raise InputError(where, f"holds no MR volume, only {listed}", "Give the folder of a 3-D MR scan")
    return [_pick_of_study(volumes, modality) for volumes in studies.values()]


def _pick_of_study(volumes: Sequence[Series], modality: str) -> tuple[Series, InputError | None]:
    fitting = [series for series in volumes if judge(series, modality) == "same"]
    taken = volumes if len(volumes) == 1 else fitting
    folder = Path(os.path.commonpath([series.folder for series in volumes]))
    if len(taken) != 1:
        what = f"{len(fitting)} are {modality} scans" if fitting else f"none is clearly a {modality} scan"
        fault = f"holds {len(volumes)} MR volumes of one study, of which {what}"
        return volumes[0], InputError(folder, fault, _choices(volumes))
    if judge(taken[0], modality) == "other":
        logger.warning("%s: does not look like a %s scan: %s", folder, modality, taken[0])
    return taken[0], None


def is_volume(series: Series) -> bool:
    """Return whether a series is an acquired MR volume, and not a localiser, projection or phase image."""
    kinds = set(series.kind.split())
    derived = kinds & {"LOCALIZER", "PROJECTION", "MIP", "P", "PHASE"}
    named = re.search(r"locali[sz]er|scout|survey", series.description, re.IGNORECASE)
    return series.modality == "MR" and series.count >= _FEWEST_SLICES and not derived and not named


def judge(series: Series, modality: str) -> str:
    """Judge the contrast of a series: "same", "other" or "" as `brainuad.inputs.contrast.contrast_of` does.

    The description decides; where it names no contrast, the echo, repetition and inversion times do.
    """
    if series.agent:
        return "other"
    if said := contrast_of(series.description, modality):
        return said
    if series.echo <= 30 and (series.repetition <= 1000 or 300 <= series.inversion <= 1500):
        return "same" if modality == "t1" else "other"
    if series.echo >= 60 and series.repetition >= 2000:
        return "same" if modality == ("flair" if series.inversion >= 1500 else "t2") else "other"
    return ""


def _read_header(path: Path) -> Series | None:
    """Return a series of one file, or None if the file holds no image."""
    try:
        syntax = str(read_file_meta_info(path).get("TransferSyntaxUID", ""))
    except InvalidDicomError:  # without preamble
        syntax = ""
    if syntax == DeflatedExplicitVRLittleEndian:  # pydicom would decompress the whole file
        raise ValueError("deflated files are not supported")
    image = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=_TAGS, defer_size="64 KB")
    if "SeriesInstanceUID" not in image or "Rows" not in image:
        return None

    def number(name: str) -> float:
        value = image.get(name)
        return float("nan") if value is None else float(value)

    def numbers(name: str) -> tuple[float, ...]:
        return tuple(float(value) for value in image.get(name) or ())

    part = Slice(
        path=path,
        instance=str(image.get("SOPInstanceUID", path)),
        frames=int(image.get("NumberOfFrames") or 1),
        rows=int(image.Rows),
        columns=int(image.Columns),
        orientation=numbers("ImageOrientationPatient"),
        position=numbers("ImagePositionPatient"),
        syntax=syntax or str(ImplicitVRLittleEndian),
    )
    kind = image.get("ImageType") or ""
    return Series(
        uid=str(image.SeriesInstanceUID),
        study=str(image.get("StudyInstanceUID", "")),
        number=str(image.get("SeriesNumber") or ""),
        description=one_line(image.get("SeriesDescription") or image.get("ProtocolName") or "")[:64],
        modality=str(image.get("Modality", "")),
        kind=kind if isinstance(kind, str) else " ".join(map(str, kind)),
        echo=number("EchoTime"),
        repetition=number("RepetitionTime"),
        inversion=number("InversionTime"),
        agent=bool(image.get("ContrastBolusAgent")),
        slices=(part,),
    )


def _choices(found: Sequence[Series]) -> str:
    return "Choose one by --series UID: " + "; ".join(map(str, found[:20]))


def one_line(text: object) -> str:
    """Return text without line breaks and other unprintable characters."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in str(text)).split())
