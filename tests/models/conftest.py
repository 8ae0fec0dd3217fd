from pathlib import Path

import numpy as np
import pytest
import torch

from brainuad.models.diffusion import DiffusionSettings

REFERENCE = Path(__file__).parents[1] / "reference"


@pytest.fixture(scope="session")
def reference():
    """Return a loader of the arrays in tests/reference."""
    return lambda name: np.load(REFERENCE / f"{name}.npz")


@pytest.fixture
def tiny():
    """Return settings of a network that runs in milliseconds; keywords change settings."""

    def config(**changes):
        return DiffusionSettings(**{"unet_dim": 32, "dim_mults": (1, 2, 2), "num_res_blocks": 1, **changes})

    return config


@pytest.fixture(scope="session")
def randomise():
    """Return a function that replaces a module's weights, zeros included, by fixed random ones."""

    def fill(module):
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                scale = float("norm" in name and name.endswith("weight"))
                parameter.copy_(scale + 0.05 * torch.randn(parameter.shape, generator=generator))
        return module

    return fill
