from pathlib import Path

import numpy as np
import pytest

REFERENCE = Path(__file__).parents[1] / "reference"


@pytest.fixture(scope="session")
def reference() -> dict[str, np.ndarray]:
    """Arrays of the published evaluation on one MSLUB scan and a blurred stand-in for its reconstruction."""
    with np.load(REFERENCE / "scoring_mslub19_t1.npz") as arrays:
        return dict(arrays)
