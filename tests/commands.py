"""Commands as a user types them, and ways to damage a scan."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from typer.testing import CliRunner

from brainuad.cli import app

FILES = Path(__file__).parent / "files"


def run(*words: Any, code: int = 0) -> Any:
    """Run a command in this process; it must end with ``code`` and without a traceback."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.stdout + result.stderr
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.stdout + result.stderr
    return result


def typed(*words: Any) -> subprocess.CompletedProcess[str]:
    """Run the installed program."""
    program = Path(sys.executable).with_name("brainuad")
    return subprocess.run([program, *map(str, words)], capture_output=True, text=True, check=False)


def change(path: Path, function: Callable[[np.ndarray], np.ndarray]) -> None:
    image = nib.load(path)
    nib.save(nib.Nifti1Image(function(np.asarray(image.dataobj, dtype=np.float32)), image.affine), path)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:2000])


DAMAGES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "mismatch": ("mask", lambda path: change(path, lambda array: array[..., 1:]), "shape (40, 48, 29)"),
    "empty": ("mask", lambda path: change(path, np.zeros_like), "above 0.5"),
    "holes": ("image", lambda path: change(path, lambda array: np.where(array > 200, np.nan, array)), "NaN"),
    "constant": ("image", lambda path: change(path, lambda array: np.full_like(array, 7)), "constant"),
    "flat": ("image", lambda path: change(path, lambda array: array[:, :, 15]), "three dimensions"),
    "series": ("image", lambda path: change(path, lambda array: np.stack([array, array], -1)), "three dimensions"),
    "truncated": ("image", truncate, "truncated or damaged"),
    "text": ("image", lambda path: path.write_text("no image"), "not a readable NIfTI file"),
    "missing": ("image", Path.unlink, "no such file"),
    "folder": ("image", lambda path: (path.unlink(), path.mkdir()), ""),
}


def damage(data_dir: Path, name: str) -> Path:
    """Damage the image or the mask of the test patient and return its path."""
    kind, spoil, _ = DAMAGES[name]
    path = data_dir / f"Data/Test/MSLUB/{'t1' if kind == 'image' else 'mask'}/patient19-T1.nii.gz"
    spoil(path)
    return path
