from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings

import pytest
from pydicom import Dataset

from brainuad.console import announce, print_rows, progress, set_verbosity, time_left


def test_messages_go_to_the_stderr_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.redirect_stderr(io.StringIO()) as gone:
        set_verbosity(verbose=False, quiet=False)
    gone.close()
    logging.getLogger("brainuad.data").warning("left out")
    assert capsys.readouterr().err == "brainuad: left out\n"


def test_what_pydicom_says_is_told_only_if_more_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    image = Dataset()
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # pytest's would catch them
        set_verbosity(verbose=False, quiet=False)
        image.PatientID = "7" * 80
        assert capsys.readouterr().err == ""
        set_verbosity(verbose=True, quiet=False)
        image.PatientID = "8" * 80
    assert "exceeds" in capsys.readouterr().err
    set_verbosity(verbose=False, quiet=False)


def test_a_table_folds_long_cells_and_never_the_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"FORCE_COLOR": "1", "NO_COLOR": "1", "TERM": "xterm", "COLUMNS": "40"}.items():
        monkeypatch.setenv(name, value)
    path = "/data/" + "0123456789" * 8 + "/scan.nii.gz"
    print_rows([{"name": "IXI013-HH-1212_t1", "size": 3, "source": path}], as_json=False, shown=("name", "source"))
    head, *lines = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in capsys.readouterr().out.splitlines()]
    assert head.split() == ["name", "source"]
    assert lines[0].startswith("IXI013-HH-1212_t1 ")
    assert "".join(line[17:].strip() for line in lines) == path
    assert max(map(len, lines)) <= 40


def test_quiet_announces_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    set_verbosity(verbose=False, quiet=False)
    announce("loading a model")
    set_verbosity(verbose=False, quiet=True)
    announce("loading another")
    assert capsys.readouterr().err == "brainuad: loading a model\n"


def test_the_time_left_is_that_of_those_done() -> None:
    assert time_left(120.0, 2, 3, since=0.0) == 180.0  # however long each takes
    assert time_left(0.0, 0, 3, since=5.0) is None
    assert time_left(5.0, 2, None, since=0.0) is None


def test_the_time_left_falls_while_an_item_is_worked_on_and_stays_above_zero() -> None:
    assert [time_left(120.0, 2, 1, since=since) for since in (0.0, 20.0, 60.0, 90.0)] == [60.0, 40.0, 0.0, 0.0]


def test_a_bar_shows_stage_and_time_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "120"}.items():
        monkeypatch.setenv(name, value)
    set_verbosity(verbose=False, quiet=False)
    with progress("Scoring", 4) as bar:
        bar(skipped=True)
        bar.stage("a: registering")
        bar.shown.refresh()
        assert "left" not in capsys.readouterr().err  # one that was done before says nothing
        bar("a: remark", what="Drawing")
        bar()
        bar.stage("b: reconstruct")
        bar.shown.refresh()
        shown = capsys.readouterr().err
    assert "a: remark" in shown
    assert "Drawing" in shown
    assert "2/4" in shown
    assert "left" in shown
    assert "b: reconstruct" in shown
