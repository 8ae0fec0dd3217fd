"""``brainuad models``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from brainuad.cli import options
from brainuad.cli.app import app
from brainuad.console import exit_by_status, print_rows, say
from brainuad.errors import InputError

models = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="List the models that come with brainuad, print their folders, and verify, import or pack any model.",
)
NewModel = Annotated[Path, typer.Option("-o", "--output", metavar="MODEL", help="New folder for the model.")]
app.add_typer(models, name="models", short_help="List, find, verify, import and pack models.")


@models.command(name="list", short_help="List the models that come with brainuad.")
def list_models(as_json: options.Json = False) -> None:
    """List the models that come with brainuad.

    `seconds_a_scan` is what `brainuad score` takes for one scan of 1 mm on two cores of a processor.
    """
    from brainuad.detector import load_model
    from brainuad.modelfile import known_models, model_folder

    rows = []
    for name in known_models():
        detector = load_model(name, "cpu")
        about, calibration = detector.provenance, detector.calibration
        with model_folder(name) as folder:
            size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
            card = (folder / "MODEL_CARD.md").read_text(encoding="utf-8").splitlines()
        row = {
            "name": name,
            "modality": detector.modality,
            "parameters": sum(weight.numel() for weight in detector.model.parameters()),
            "megabytes": round(size / 1e6, 1),
            "seconds_a_scan": about.get("seconds_a_scan", "unknown"),
            "calibrated_on": calibration.scans if calibration else 0,
            "licence": about.get("licence", "unknown"),
            "trained_on": about.get("training_data", "unknown"),
            "for": card[2].split(" **")[0],
        }
        rows.append(row)
    if rows:
        print_rows(rows, as_json, shown=("name", "modality", "seconds_a_scan", "calibrated_on", "for"))


@models.command(short_help="Print a model's folder.")
def path(name: Annotated[str, typer.Argument(metavar="NAME", help="Name of a shipped model.")]) -> None:
    """Print the folder of a model that comes with brainuad."""
    from brainuad.modelfile import model_folder

    with model_folder(name) as folder:
        print(folder.resolve())


@models.command(short_help="Check that models are complete and work.")
def verify(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME|DIR]", help="Name or folder of one model. Default: all shipped models."),
    ] = None,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Check a model's weights against their recorded SHA-256, and reconstruct a few slices with it."""
    from brainuad.modelfile import known_models

    rows = [_verified(each, device) for each in ([name] if name else known_models())]
    if rows:
        print_rows(rows, as_json)
    exit_by_status(rows)


def _bytes(text: str) -> int:
    """Return a size: "15MB", "16MiB", "900kB", or a number of bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([kMG])(i?))?B?", text.strip())
    if not match:
        raise typer.BadParameter(f"{text!r} is no size such as 15MB or 16MiB", param_hint="--part-size")
    power = " kMG".index(match[2] or " ")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


@models.command(name="import", short_help="Convert a checkpoint of the paper's release to a model.")
def import_model(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CKPT", help="Checkpoint of the release's DDPM: .ckpt, .pt or .safetensors.")
    ],
    output: NewModel,
    modality: options.Modality,
) -> None:
    """Make a model folder, which every command takes, of a checkpoint of the paper's release.

    The network's settings follow from the weights, all others are those of experiment=DDPM/DDPM. The contrast that it
    was trained on must be given. Nothing in the checkpoint is executed.
    """
    from brainuad.modelimport import import_checkpoint

    import_checkpoint(checkpoint, output, modality=modality)
    print(output)


@models.command(short_help="Write a model as a few small files.")
def pack(
    model: options.Model,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="PARTS", help="New folder for the files.")],
    part_size: Annotated[str, typer.Option(metavar="SIZE", help="Size of the largest file: 15MB, 16MiB ...")] = "15MB",
    bits: Annotated[
        str, options.one_of(("16", "8"), "Bits per weight. 8 halves the files and rounds coarsely.")
    ] = "16",
) -> None:
    """Write a model as a few small files with checksums. `brainuad models unpack` restores it.

    Weights are stored in 16 bits; those of a model that is stored so stay exact.
    """
    from brainuad.modelfile import model_folder
    from brainuad.modelpack import pack_model

    with model_folder(model) as folder:
        parts = pack_model(folder, output, part_size=_bytes(part_size), bits=int(bits))
    for part in parts:
        print(part)
    say(f"{len(parts)} files, {sum(part.stat().st_size for part in parts) / 1e6:.1f} MB")


@models.command(short_help="Restore a packed model.")
def unpack(
    parts: Annotated[Path, typer.Argument(metavar="PARTS", help="Folder that `brainuad models pack` wrote.")],
    output: NewModel,
) -> None:
    """Verify the files of a packed model, and write the model's folder completely or not at all."""
    from brainuad.modelpack import unpack_model

    unpack_model(parts, output)
    print(output)


def _verified(name: str, device: str) -> dict[str, Any]:
    from brainuad.detector import Detector
    from brainuad.devices import resolve_device
    from brainuad.files import sha256
    from brainuad.modelfile import WEIGHTS, model_folder, recorded_hash

    row = {"name": name, "status": "ok", "weights": "", "message": ""}
    try:
        target = resolve_device(device)
        with model_folder(name) as folder:
            recorded, found = recorded_hash(folder), sha256(Path(folder) / WEIGHTS)
            detector = Detector.load(folder, device=target)
        row["weights"] = "as recorded" if recorded else "no SHA-256 was recorded"
        if recorded not in ("", found):
            row["weights"] = "changed"
            fault = f"has SHA-256 {found}, recorded is {recorded}"
            raise InputError(folder / WEIGHTS, fault, "Copy or download it again")
        if not _works(detector):
            raise InputError(name, "makes NaN or infinite values", "Take another checkpoint")
    except InputError as error:
        row |= {"status": "failed", "message": str(error)}
    return row


def _works(detector: Any) -> bool:
    """Return whether a model computes finite values for the middle slices of the atlas brain, on its grid.

    A model that learnt from whole volumes gets all slices, because it may work on whole volumes only.
    """
    from brainuad.data.loading import crop_or_pad
    from brainuad.data.placement import atlas_brain

    config = detector.data_config
    x, y, z = (round(length / config.rescaleFactor) for length in config.imageDim)
    image = crop_or_pad(atlas_brain().array / 255, (x, y, z if detector.model.fits else 4))
    found = detector.infer(image, image > 0)
    return all(bool(made.isfinite().all()) for made in found if made is not None)
