"""HD-BET (Isensee et al. 2019): brain extraction for any contrast, by a program that the user installs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from brainuad.data.extract import on_same_grid
from brainuad.data.volume import Volume
from brainuad.errors import InputError

PROGRAM = "hd-bet"
TIME_LIMIT = 1800.0  # s for one scan: some minutes are usual without a GPU


def hdbet_mask(image: Volume) -> np.ndarray:
    """Return the brain mask of a scan with skull, ``(X, Y, Z)`` bool, by HD-BET 2.

    Runs ``hd-bet -i IN -o OUT -device cuda --save_bet_mask --no_bet_image``; without a GPU on the CPU with
    ``--disable_tta``, as its authors recommend.

    Raises:
        InputError: The program is not installed.
        ValueError: It fails, takes too long, or its mask is empty or lies on another grid.
    """
    program = shutil.which(PROGRAM)
    if program is None:
        raise InputError(PROGRAM, "is not installed", "pip install hd-bet (its first run downloads its weights)")
    import torch

    with TemporaryDirectory(prefix="brainuad-") as folder:
        scan, extracted = Path(folder) / "scan.nii.gz", Path(folder) / "brain.nii.gz"
        image.save(scan)
        device = ["-device", "cuda"] if torch.cuda.is_available() else ["-device", "cpu", "--disable_tta"]
        _run([program, "-i", str(scan), "-o", str(extracted), *device, "--save_bet_mask", "--no_bet_image"])
        written = Path(folder) / "brain_bet.nii.gz"
        if not written.exists():
            raise ValueError(f"{PROGRAM} wrote no brain mask: version 2 is needed")
        mask = Volume.load(written)
    if not on_same_grid(mask, image):
        raise ValueError(f"{PROGRAM} wrote a brain mask on another grid ({mask.array.shape})")
    if not mask.inside.any():
        raise ValueError(f"{PROGRAM} found no brain")
    return mask.inside


def _run(command: list[str]) -> None:
    """Run a program without a shell. A timeout or an interrupt ends the program and its child processes."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, errors="replace", start_new_session=True,
    ) as process:  # fmt: skip
        try:
            _, said = process.communicate(timeout=TIME_LIMIT)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise ValueError(f"{PROGRAM} took longer than {TIME_LIMIT:g} s") from error
            raise
    if process.returncode:
        last = (said.strip().splitlines() or ["it said nothing"])[-1]
        raise ValueError(f"{PROGRAM} failed with exit code {process.returncode} ({last[:200]})")
