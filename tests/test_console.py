from __future__ import annotations

import contextlib
import io
import logging

import pytest

from brainuad.console import set_verbosity


def test_messages_go_to_the_stderr_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.redirect_stderr(io.StringIO()) as gone:
        set_verbosity(verbose=False, quiet=False)
    gone.close()
    logging.getLogger("brainuad.data").warning("left out")
    assert capsys.readouterr().err == "brainuad: left out\n"
