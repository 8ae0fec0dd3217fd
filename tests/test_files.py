"""Temporary files: those of killed processes go, those of living ones stay."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from brainuad import files
from brainuad.errors import InputError
from brainuad.files import atomic_folder, atomic_path, write_text

DIE = """
import os, signal, sys
from brainuad.files import {how}
with {how}(sys.argv[1]) as temporary:
    {write}
    os.kill(os.getpid(), signal.SIGKILL)
"""
WRITE = {"atomic_path": "temporary.write_text('half')", "atomic_folder": "(temporary / 'file').write_text('half')"}
unix = pytest.mark.skipif(sys.platform == "win32", reason="temporary files are not locked")


def killed_while_writing(target: Path, how: str) -> None:
    """Have a process die that was writing a file or a folder."""
    program = DIE.format(how=how, write=WRITE[how])
    done = subprocess.run([sys.executable, "-c", program, str(target)], check=False)
    assert done.returncode == -signal.SIGKILL


@unix
@pytest.mark.parametrize("how", WRITE)
def test_what_a_killed_process_left_is_removed(how: str, tmp_path: Path) -> None:
    killed_while_writing(tmp_path / "result", how)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".partial-")
    write_text(tmp_path / "other", "whole")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


@unix
def test_what_somebody_is_writing_stays(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "file") as file, atomic_folder(tmp_path / "folder") as folder:
        file.write_text("whole")
        (folder / "file").write_text("whole")
        files._remove_left_behind.cache_clear()  # as another process would
        write_text(tmp_path / "other", "whole")
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*"))
    assert found == ["file", "folder", "folder/file", "other"]


@unix
def test_what_another_machine_left_stays(tmp_path: Path) -> None:
    """Where locks do not reach other machines, it may be writing."""
    other = tmp_path / ".partial-ffffff-abcdefgh-result"
    other.write_text("half")
    assert not other.name.startswith(files._TEMPORARY)
    write_text(tmp_path / "result", "whole")
    assert other.exists()


def test_permissions_are_as_usual(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "file"), atomic_folder(tmp_path / "folder"):
        pass
    (tmp_path / "usual").touch()
    (tmp_path / "usual folder").mkdir()
    for made, usual in (("file", "usual"), ("folder", "usual folder")):
        assert (tmp_path / made).stat().st_mode == (tmp_path / usual).stat().st_mode


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    before = os.dup(0)
    os.close(before)
    for number in range(3):
        write_text(tmp_path / f"{number}", "whole")
    after = os.dup(0)
    os.close(after)
    assert after == before


@unix
def test_a_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.nii")
    for read in (files.sha256, files.csv_reader):
        with pytest.raises(InputError, match=r"pipe\.nii: is not a regular file"):
            read(tmp_path / "pipe.nii")
