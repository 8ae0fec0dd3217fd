"""Small scans, tiny models and the commands that work on them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from dicom_series import write_series
from disturbed import Ended, run
from outputs import left_behind, outputs
from paper_layout import build_tree
from tiny import FILES, IMAGE, MASK, tiny_detector

from brainuad.config import DataConfig
from brainuad.data.volume import Volume
from brainuad.detector import Detector
from brainuad.models import DiffusionModel
from brainuad.models.diffusion import DiffusionSettings

Words = Callable[[Path], list[Any]]  # of the folder that a command may write to


@pytest.fixture(scope="session")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with scans without skull, their masks, raw scans, the paper's data, and two models."""
    root = tmp_path_factory.mktemp("room")
    tiny_detector().save(root / "model")
    image, mask = nib.load(IMAGE), nib.load(MASK)
    (root / "scans").mkdir()
    (root / "masks").mkdir()
    for number in range(2):
        values = np.rint(255 * (image.get_fdata() / 255) ** (0.8 + 0.3 * number)).astype(np.float32)
        nib.save(nib.Nifti1Image(values, image.affine), root / "scans" / f"scan{number}_t1.nii.gz")
        nib.save(mask, root / "masks" / f"scan{number}_mask.nii.gz")
    scan = Volume.load(IMAGE)
    write_series(root / "dicom" / "series", scan.with_array(np.rint(scan.array)))
    rows = ["subject,image,mask,dataset,split"]
    for name in ("A", "B"):
        rows.append(f"{name},{name}.nii.gz,{name}_mask.nii.gz,clinic,test")
        shutil.copy(IMAGE if name == "A" else FILES / "ixi013_t1_4mm.nii.gz", root / f"{name}.nii.gz")
        shutil.copy(MASK if name == "A" else FILES / "ixi013_mask_4mm.nii.gz", root / f"{name}_mask.nii.gz")
    (root / "raw.csv").write_text("\n".join(rows) + "\n")
    build_tree(root / "data")
    config = DiffusionSettings(unet_dim=8, dim_mults=(1, 2), num_res_blocks=1, attention_head_dim=8)
    torch.manual_seed(3)
    model = DiffusionModel(config).requires_grad_(False).eval()
    Detector(model, config, DataConfig(imageDim=(40, 48, 30), smoothing_iterations=0)).save(root / "measured")
    return root


@pytest.fixture(scope="session")
def commands(room: Path) -> dict[str, Words]:
    """Commands that take seconds, by name."""
    cpu = ("--device", "cpu")

    def score(folder: Path) -> list[Any]:
        model = ("--model", room / "model", "--fpr", 0.05)
        return ["score", room / "scans", room / "dicom", "-o", folder / "out", *model, *cpu]

    def calibrate(folder: Path) -> list[Any]:
        masks = ("--brain-mask", room / "masks")
        return ["calibrate", room / "model", room / "scans", "-o", folder / "out", *masks, *cpu]

    def prepare(folder: Path) -> list[Any]:
        how = ("--dataset", "manifest", "--spacing", 2, "--bias-levels", 1, "--jobs", 2)
        return ["prepare", room / "raw.csv", "-o", folder / "out", *how]

    def evaluate(folder: Path) -> list[Any]:
        scores = ("--scores", "l1,ssim_ensemble", "--no-native")
        return ["evaluate", room / "measured", room / "data", "-o", folder / "out", *scores, *cpu]

    def train(folder: Path) -> list[Any]:
        return [
            "train", "experiment=smoke", "resume=True", f"data_dir={room / 'data'}", f"log_dir={room / 'runs'}",
            f"hydra.run.dir={folder / 'out'}", "num_folds=1", "trainer.max_epochs=4", "trainer.accelerator=cpu",
            "model.cfg.unet_dim=32", "model.cfg.dim_mults=[1,1]", "model.cfg.num_res_blocks=1",
            "datamodule.cfg.imageDim=[40,48,32]", "logger.tensorboard=False", "callbacks.checkpoint_every_seconds=0",
        ]  # fmt: skip

    return {"score": score, "calibrate": calibrate, "prepare": prepare, "evaluate": evaluate, "train": train}


@pytest.fixture(scope="session")
def undisturbed(
    commands: dict[str, Words], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Ended, dict[str, Any]]]:
    """How each command ends that is left alone, and what it writes."""
    known: dict[str, tuple[Ended, dict[str, Any]]] = {}

    def of(name: str) -> tuple[Ended, dict[str, Any]]:
        if name not in known:
            folder = tmp_path_factory.mktemp(name)
            ended = run(commands[name](folder), folder)
            assert ended.code == 0, ended.said
            assert left_behind(folder) == []
            known[name] = ended, outputs(folder)
        return known[name]

    return of
