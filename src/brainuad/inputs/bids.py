"""BIDS (Brain Imaging Data Structure): find the scans of a data set, and name results as its derivative.

Version 1.10 of the specification, https://bids-specification.readthedocs.io. Only file names are interpreted.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from brainuad._version import __version__
from brainuad.errors import InputError
from brainuad.files import read_json, write_json, write_text

logger = logging.getLogger(__name__)

DESCRIPTION = "dataset_description.json"
SUFFIXES = {"t1": "T1w", "t2": "T2w", "flair": "FLAIR"}
_NAME = re.compile(r"(sub-[A-Za-z0-9+]+)(_ses-[A-Za-z0-9+]+)?(_[A-Za-z]+-[A-Za-z0-9+]+)*_[A-Za-z0-9]+\.nii(\.gz)?")
# Metadata common to all files of a kind; files inherit it from the root, as the specification allows.
_INHERITED = {
    "desc-anomaly_{suffix}": {
        "SkullStripped": True,
        "Description": "Anomaly map: higher is less like a healthy brain, 0 outside the brain",
    },
    "desc-reconstruction_{suffix}": {
        "SkullStripped": True,
        "Description": "The brain as the model reconstructs it: how it would look healthy",
    },
    "desc-lesions_dseg": {
        "Description": "Findings, numbered as in the list of findings. Research use only; not for diagnosis"
    },
    "desc-brain_mask": {"Type": "Brain"},
}
# contrast agent, parts of complex images, and derived images
_LEFT_OUT = re.compile(r"_(ce|part|desc|space|label)-")
# our outputs that the specification does not define
_IGNORED = ("*.png", "*.html", "scores.csv", "findings.csv", ".scores.csv.lock", "run.json", "failed")


def is_bids(folder: Path) -> bool:
    """Return whether a folder is the root of a BIDS data set of raw scans.

    Raises:
        InputError: It holds results of this package.
    """
    if not (folder / DESCRIPTION).is_file():
        return False
    description = _description(folder)
    if _is_ours(description):
        raise InputError(folder, "holds results of brainuad, not scans", "Give the folder of the scans")
    return description.get("DatasetType", "raw") == "raw"


def bids_images(
    root: Path, modality: str, *, participants: Sequence[str] = (), sessions: Sequence[str] = ()
) -> list[Path]:
    """List a data set's anatomical images of a modality, in order.

    They are without contrast agent (``ce-``), and no part of a complex image (``part-``). Labels of participants and
    sessions come with or without "sub-" and "ses-"; without labels all are taken.

    Raises:
        InputError: There is none, or a label is unknown.
    """
    suffix = SUFFIXES[modality]
    subjects = sorted(path for path in root.glob("sub-*") if path.is_dir())
    wanted = _known_labels(root, "--participant-label", "sub", participants, subjects)
    within = [path for subject in subjects for path in subject.glob("ses-*")]
    wanted_sessions = _known_labels(root, "--session", "ses", sessions, within)
    images: list[Path] = []
    for subject in subjects:
        if wanted and subject.name not in wanted:
            continue
        for folder in [subject, *sorted(subject.glob("ses-*"))]:
            session = folder.name if folder != subject else ""
            if not wanted_sessions or session in wanted_sessions:
                images += _in_folder(folder / "anat", subject.name, session, suffix)
    if not images:
        fault = f"holds no {suffix} image: looked for sub-*/[ses-*/]anat/sub-*_{suffix}.nii.gz without ce- and part-"
        raise InputError(root, fault, "Check the data set, or the labels that were asked for")
    return images


def derivative_names(name: str) -> dict[str, str]:
    """Name the outputs of an image "sub-01_ses-2_T1w" as files of a derivative data set."""
    entities, _, suffix = name.rpartition("_")
    return {
        "anomaly": f"{entities}_desc-anomaly_{suffix}.nii.gz",
        "lesions": f"{entities}_desc-lesions_dseg.nii.gz",
        "reconstruction": f"{entities}_desc-reconstruction_{suffix}.nii.gz",
        "brain": f"{entities}_desc-brain_mask.nii.gz",
        "sidecar": f"{entities}_desc-anomaly_{suffix}.json",
        "montage": f"{entities}_desc-anomaly_{suffix}.png",
    }


def write_dataset_description(output: str | Path, source_root: str | Path, modality: str) -> None:
    """Make a folder of results of a modality ("t1", "t2" or "flair") a BIDS derivative of the scored data set.

    Raises:
        InputError: The folder is another BIDS data set, or cannot be written to.
    """
    output = Path(output)
    if (output / DESCRIPTION).is_file() and not _is_ours(_description(output)):
        raise InputError(output, "is a BIDS data set already", "Choose another output folder")
    write_text(output / ".bidsignore", "\n".join(_IGNORED) + "\n")
    for name, fields in _INHERITED.items():
        write_json(output / f"{name.format(suffix=SUFFIXES[modality])}.json", fields)
    write_json(
        output / DESCRIPTION,
        {
            "Name": "Anomaly maps by brainuad (research use only; not for diagnosis)",
            "BIDSVersion": "1.10.0",
            "DatasetType": "derivative",
            "GeneratedBy": [{"Name": "brainuad", "Version": __version__}],
            "SourceDatasets": [{"URL": Path(source_root).resolve().as_uri()}],
        },
    )


def _in_folder(folder: Path, subject: str, session: str, suffix: str) -> list[Path]:
    images = []
    for path in sorted(folder.glob(f"*_{suffix}.nii*")):
        named = _NAME.fullmatch(path.name)
        if not named:
            if not path.name.startswith("."):
                logger.warning("%s: left out, for its name is not as BIDS has it", path)
        elif (named[1], (named[2] or "").lstrip("_")) != (subject, session):
            logger.warning("%s: left out, for its name does not agree with its folder", path)
        elif _LEFT_OUT.search(path.name):
            logger.info("%s: left out, for it is not a plain %s", path, suffix)
        else:
            images.append(path)
    return images


def _known_labels(root: Path, option: str, key: str, given: Sequence[str], folders: Sequence[Path]) -> set[str]:
    """Return the labels that were asked for with their key, and refuse those of no folder."""
    wanted = {f"{key}-{label.removeprefix(f'{key}-')}" for label in given}
    present = {path.name for path in folders}
    if unknown := sorted(wanted - present):
        some = ", ".join(sorted(present)[:10]) or "none"
        more = f" and {len(present) - 10} more" if len(present) > 10 else ""
        raise InputError(root, f"has no {', '.join(unknown)} ({option})", f"There are: {some}{more}")
    return wanted


def _description(folder: Path) -> dict[str, Any]:
    """Return a data set's description, or {} if it is damaged: only the kind of data set is read from it."""
    try:
        description = read_json(folder / DESCRIPTION)
    except (OSError, ValueError) as error:
        logger.warning("%s: cannot be read (%s)", folder / DESCRIPTION, error)
        return {}
    return description if isinstance(description, dict) else {}


def _is_ours(description: dict[str, Any]) -> bool:
    made_by = description.get("GeneratedBy")
    tools = made_by if isinstance(made_by, list) else []
    return any(isinstance(tool, dict) and tool.get("Name") == "brainuad" for tool in tools)
