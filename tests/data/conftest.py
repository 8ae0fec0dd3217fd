"""Fixtures of the tests of data."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from paper_layout import build_tree


@pytest.fixture
def paper_tree(tmp_path: Path) -> Callable[..., Path]:
    """Builder of a small ``DATA_DIR`` of real files; see ``build_tree``."""
    return partial(build_tree, tmp_path / "data_dir")
