"""The examples in docstrings are true."""

import doctest
from importlib import import_module

import pytest

MODULES = [
    "brainuad.data.cohort",
    "brainuad.data.volume",
    "brainuad.detector",
    "brainuad.evaluation.curve",
    "brainuad.evaluation.lesions",
    "brainuad.scoring.ssim",
    pytest.param("brainuad", marks=pytest.mark.long),  # scores a scan
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_say(name: str) -> None:
    result = doctest.testmod(import_module(name))
    assert result.attempted
    assert not result.failed
