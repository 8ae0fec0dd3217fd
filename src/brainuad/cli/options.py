"""Options that several commands share, and checks of their values."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from brainuad.data.cohort import PATHOLOGY_SETS
from brainuad.errors import InputError

# Those of brainuad.devices, repeated here because that module is slow to import.
DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "float32", "bfloat16")


def one_of(names: Collection[str], help: str) -> Any:
    """Return an option that takes one of ``names``, or one device of several ("cuda:1").

    Upper and lower case do not matter. All names are lower case.
    """

    def check(value: str | None) -> str | None:
        if value is not None and re.sub(r"^cuda:\d+$", "cuda", value.lower()) not in names:
            raise typer.BadParameter(f"{value!r} is none of {', '.join(names)}")
        return value and value.lower()

    return typer.Option(help=help, callback=check, metavar="|".join(names))


def listed(values: list[str] | None) -> list[str]:
    """Return the names of a repeated option, each value a name or several separated by commas."""
    return [name for value in values or () for name in value.split(",")]


def several(what: str, default: str = "", *, metavar: str = "NAME") -> Any:
    """Return an option that takes several names, which may be repeated, or separated by commas."""
    help = f"{what}; repeat the option or use commas. {default}".rstrip()
    return typer.Option(metavar=metavar, help=help, callback=listed)


Model = Annotated[str, typer.Argument(metavar="MODEL", help="Name of a shipped model, or folder of a model or a run.")]
DataDir = Annotated[Path, typer.Argument(metavar="DATA_DIR", help="Folder in the paper's layout, or a manifest CSV.")]
Output = Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder for all results.")]
Modality = Annotated[str, one_of(PATHOLOGY_SETS, "Contrast of the images to use.")]
Sets = Annotated[list[str] | None, several("Data sets", "Default: all.")]
Split = Annotated[str, one_of(("test", "val"), "Split of the scans that are measured.")]
Seed = Annotated[int, typer.Option(min=0, metavar="N", help="Seed of every random number.")]
Device = Annotated[str, one_of(DEVICES, "Device to compute on.")]
Precision = Annotated[
    str, one_of(PRECISIONS, "Number format of the network; auto is bfloat16 where the device supports it.")
]
Threads = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="CPU threads of the network. Default: one per core.")
]
Jobs = Annotated[int, typer.Option(min=1, metavar="N", help="Number of processes.")]
ScansAtOnce = Annotated[
    int, typer.Option("--jobs", min=1, metavar="N", help="Number of scans scored at the same time.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="List the scans and stop.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def use_threads(number: int | None) -> None:
    """Set the number of PyTorch's threads; None leaves it as it is."""
    if number is not None:
        import torch

        torch.set_num_threads(number)


def check_known(option: str, names: list[str] | None, among: Iterable[str]) -> None:
    """Refuse an unknown name as wrong usage, and suggest the nearest."""
    there = list(dict.fromkeys(among))
    for name in names or ():
        if name not in there:
            near = difflib.get_close_matches(name, there, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(there)}"
            raise typer.BadParameter(f"{name!r} is unknown. {hint}", param_hint=option)


def known_scores(option: str, names: list[str] | None, also: Collection[str] = ()) -> None:
    """Refuse a name that is no score and not in ``also`` as wrong usage.

    Families too large to list, such as ``ssim_1.42``, are known, too.
    """
    from brainuad.scoring.names import base_of, score_names

    for name in names or ():
        try:
            if name not in also:
                base_of(name)
        except InputError:
            check_known(option, [name], [*score_names(), *also])
