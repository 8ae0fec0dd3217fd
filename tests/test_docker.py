"""The container cannot be built everywhere: its recipe is linted, and its entry point meets the real command line."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCKERFILE = ROOT / "Dockerfile"
APP = ROOT / "docker" / "bids_app.py"
BIN = Path(sys.executable).parent
HEAD = Path(__file__).parent / "files" / "ixi013_t1_4mm.nii.gz"


def instructions() -> list[tuple[str, str]]:
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def run_app(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    command = [sys.executable, str(APP), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


@pytest.fixture
def bids(tmp_path) -> Path:
    for subject in ("01", "02"):
        path = tmp_path / f"bids/sub-{subject}/anat/sub-{subject}_T1w.nii.gz"
        path.parent.mkdir(parents=True)
        shutil.copyfile(HEAD, path)
    description = {"Name": "two heads", "BIDSVersion": "1.9.0"}
    (tmp_path / "bids/dataset_description.json").write_text(json.dumps(description))
    return tmp_path / "bids"


def test_the_linter_finds_no_fault(tmp_path):
    lint = [str(BIN / "hadolint"), "--format", "json"]
    found = subprocess.run([*lint, str(DOCKERFILE)], capture_output=True, text=True)
    assert (json.loads(found.stdout), found.returncode) == ([], 0)
    worse = tmp_path / "Dockerfile"
    worse.write_text(DOCKERFILE.read_text().replace("bookworm\n", "bookworm\nRUN cd /tmp\n"))
    assert subprocess.run([*lint, str(worse)], capture_output=True).returncode == 1  # it does lint


def test_the_recipe_copies_what_is_there_and_runs_as_nobody_special():
    found = instructions()
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    for name, rest in found:
        if name == "COPY" and "--from" not in rest:
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists()
                assert f"!{source.split('/')[0]}" in ignored
    last = dict(found)
    assert last["USER"] == "1000"  # not root, and known to hosts that forbid it by number
    assert json.loads(last["ENTRYPOINT"]) == ["python", "/opt/bids_app.py"]
    assert ("COPY", "docker/bids_app.py /opt/bids_app.py") in found
    assert not any(name == "ADD" or "curl" in rest or "wget" in rest for name, rest in found)


def test_help_and_version():
    assert run_app("--help").stdout.startswith("usage: brainuad")
    assert re.search(r"\d+\.\d+\.\d+", run_app("--version").stdout)


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ((), "the following arguments are required"),
        (("IN", "OUT", "everything"), "invalid choice: 'everything'"),
        (("IN", "OUT", "group", "--fpr", "0.05"), "unrecognized arguments for the group level: --fpr 0.05"),
        (("IN", "OUT", "participant", "--no-such-option"), "No such option"),
    ],
)
def test_wrong_usage(arguments, fault):
    found = run_app(*arguments)
    assert found.returncode == 2
    assert fault in found.stderr


def test_the_arguments_of_a_bids_app_reach_the_command(bids, tmp_path):
    found = run_app(
        bids, tmp_path / "out", "participant", "--skip_bids_validator", "--participant_label", "02", "--n_cpus", "2",
        "--dry-run", "--json",
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    (row,) = json.loads(found.stdout)
    assert row["name"] == "sub-02_T1w"
    assert row["kind"] == "bids"
    assert not (tmp_path / "out").exists()


def test_what_the_command_says_about_the_data_comes_through(bids, tmp_path):
    found = run_app(bids, tmp_path / "out", "participant", "--participant-label", "03")
    assert found.returncode == 1
    assert "03" in found.stderr
    assert "Traceback" not in found.stderr
    assert run_app(bids, tmp_path / "nothing", "group").returncode == 1
