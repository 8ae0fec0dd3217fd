"""Options that several commands have, and checks of their values."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

import typer

from brainuad.data.cohort import PATHOLOGY_SETS

DEVICES = ("auto", "cpu", "cuda", "mps")  # as brainuad.devices has them, which is slow to import
PRECISIONS = ("auto", "float32", "bfloat16")  # likewise


def one_of(names: Collection[str]) -> dict[str, Any]:
    """Return the settings of an option that takes one of ``names``, or one device of several ("cuda:1")."""

    def check(value: str | None) -> str | None:
        if value is not None and re.sub(r"^cuda:\d+$", "cuda", value) not in names:
            raise typer.BadParameter(f"{value!r} is none of {', '.join(names)}")
        return value

    return {"callback": check, "metavar": "|".join(names)}


DataDir = Annotated[
    Path, typer.Argument(metavar="DATA_DIR", help="Folder in the paper's layout, or a manifest CSV.")
]
Output = Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Everything is written there.")]
Modality = Annotated[str, typer.Option(help="Which images to take.", **one_of(PATHOLOGY_SETS))]
Seed = Annotated[int, typer.Option(min=0, metavar="N", help="Seeds all randomness.")]
Device = Annotated[str, typer.Option(help="Where to compute.", **one_of(DEVICES))]
Precision = Annotated[
    str, typer.Option(help="What the network computes in; auto: bfloat16 where native.", **one_of(PRECISIONS))
]
Compile = Annotated[
    bool,
    typer.Option("--compile", help="Compile the network first: a minute, then a GPU is faster."),
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Processor threads of the network; by default one a core."),
]
Jobs = Annotated[int, typer.Option(min=1, metavar="N", help="Processes.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def use_threads(number: int | None) -> None:
    """Have PyTorch compute in so many threads, where a number was given."""
    if number is not None:
        import torch

        torch.set_num_threads(number)


def known(option: str, names: list[str], among: list[str]) -> None:
    """Refuse names that are not among the known ones as wrong usage."""
    for name in names:
        if name not in among:
            near = difflib.get_close_matches(name, among, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(among)}"
            raise typer.BadParameter(f"{name!r} is unknown. {hint}", param_hint=option)


def listed(values: list[str] | None) -> list[str] | None:
    """Return names that were given one by one or separated by commas."""
    return [name for value in values for name in value.split(",")] if values else None
