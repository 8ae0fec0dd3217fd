"""Fixtures of the tests of data."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from paper_layout import FILES, build_tree

from brainuad.data.volume import Volume

DEMO = Path(__file__).parents[2] / "src/brainuad/assets/demo"


@pytest.fixture
def paper_tree(tmp_path: Path) -> Callable[..., Path]:
    """Builder of a small ``DATA_DIR`` of real files; see ``build_tree``."""
    return partial(build_tree, tmp_path / "data_dir")


@pytest.fixture(scope="session")
def labelled_brain() -> tuple[Volume, Volume, Volume]:
    """A healthy T1 scan in atlas space at 2 mm, its brain mask and its parcellation."""
    names = DEMO / "IXI067_t1.nii.gz", DEMO / "IXI067_mask.nii.gz", FILES / "ixi067_labels_2mm.nii.gz"
    image, mask, labels = (Volume.load(name) for name in names)
    return image, mask, labels
