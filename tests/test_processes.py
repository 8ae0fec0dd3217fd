"""Pools of processes end with the one that started them."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PARENT = """
import os, signal
from brainuad.processes import process_pool
if __name__ == "__main__":
    with process_pool(1) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_a_worker_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(PARENT)
    with subprocess.Popen([sys.executable, tmp_path / "parent.py"], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert parent.wait() == -signal.SIGKILL
    deadline = time.monotonic() + 30
    try:
        while runs(worker) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not runs(worker)
    finally:
        if runs(worker):
            os.kill(worker, signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="of the GNU C library")
def test_freed_memory_is_taken_again() -> None:
    code = """
import resource, sys
import numpy as np
from brainuad.processes import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
np.ones(30_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(30_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    kept, returned = (
        int(subprocess.run([sys.executable, "-c", code, how], capture_output=True, text=True, check=True).stdout)
        for how in ("kept", "returned")
    )
    assert kept < 100 < returned  # page faults
