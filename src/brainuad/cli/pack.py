"""``brainuad pack``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from brainuad.cli import options
from brainuad.cli.app import app


@app.command(short_help="Pack prepared training scans into one file.")
def pack(
    data_dir: options.DataDir,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="File to write (.npz).")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SETTING=VALUE]...",
            help="Settings as for `brainuad train`: experiment=lite datamodule.cfg.mode=t2 fold=1 ...",
        ),
    ] = None,
) -> None:
    """Pack the training and validation scans of `brainuad train` into one file, prepared and in 8 bits.

    `brainuad train data_dir=FILE` with the same settings then needs no other data.
    """
    from brainuad.experiment.overrides import UnknownName, read_overrides
    from brainuad.experiment.pack import pack_data

    try:
        config = read_overrides(settings or [])
    except UnknownName as error:
        raise typer.BadParameter(str(error), param_hint="SETTING=VALUE") from error
    if config.data_dir:
        raise typer.BadParameter("is given twice: it is DATA_DIR", param_hint="data_dir")
    config.data_dir = str(data_dir)
    cohort = pack_data(config, output)
    print(f"{output}: {cohort}; {output.stat().st_size / 1e6:.1f} MB")
