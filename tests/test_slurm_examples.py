"""The batch files of examples/slurm, run by bash with stand-ins for Slurm's commands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from paper_layout import build_tree

EXAMPLES = Path(__file__).parents[1] / "examples" / "slurm"
SCRIPTS = sorted(EXAMPLES.glob("*.sbatch"))


def stand_in(folder: Path, name: str, body: str) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)


@pytest.fixture
def slurm(tmp_path: Path) -> Path:
    """A folder with ``srun``, which runs its arguments, and ``scontrol`` and ``brainuad``, which note theirs."""
    folder = tmp_path / "bin"
    stand_in(folder, "srun", 'exec "$@"')
    for name in ("scontrol", "brainuad"):
        code = 'exit "${CODE:-0}"' if name == "brainuad" else ""
        stand_in(folder, name, f'printf "%s\\n" "$@" > "{folder}/{name}.txt"; {code}')
    return folder


def submit(script: str, slurm: Path, *words: object, **variables: object) -> int:
    environment = {"PATH": f"{slurm}:/usr/bin:/bin", **{name: str(value) for name, value in variables.items()}}
    command = ["bash", str(EXAMPLES / script), *map(str, words)]
    return subprocess.run(command, env=environment, check=False, capture_output=True, timeout=60).returncode


def said(slurm: Path, name: str) -> list[str]:
    return (slurm / f"{name}.txt").read_text().splitlines() if (slurm / f"{name}.txt").exists() else []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_bash_can_read_it(script: Path) -> None:
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    text = script.read_text()
    assert text.startswith("#!/bin/bash\n")
    assert "#SBATCH --requeue" in text
    assert text.index("#SBATCH --job-name") < text.index("\nset -u")  # later lines would not be read


def test_score_takes_its_share(slurm: Path) -> None:
    count = {"SLURM_ARRAY_TASK_COUNT": 3, "SLURM_ARRAY_TASK_MIN": 10, "SLURM_ARRAY_TASK_STEP": 5}
    for number, task in enumerate((10, 15, 20), start=1):
        assert submit("score.sbatch", slurm, "/my scans", OUT="/out", SLURM_ARRAY_TASK_ID=task, **count) == 0
        expected = ["score", "/my scans", "-o", "/out", "--jobs", "1", "--shard", f"{number}/3"]
        assert said(slurm, "brainuad") == expected


def test_score_of_all_puts_together(slurm: Path) -> None:
    assert submit("score.sbatch", slurm, "/data", OUT="/out", SLURM_CPUS_PER_TASK=4) == 0
    assert said(slurm, "brainuad") == ["score", "/data", "-o", "/out", "--jobs", "4"]


@pytest.mark.parametrize(("code", "expected"), [(3, 0), (1, 1), (130, 130)])
def test_scans_that_fail_do_not_hold_up_others(slurm: Path, code: int, expected: int) -> None:
    assert submit("score.sbatch", slurm, "/data", OUT="/out", CODE=code) == expected


@pytest.mark.parametrize("script", ["score.sbatch", "train.sbatch", "evaluate.sbatch"])
def test_what_is_not_set_is_named(slurm: Path, script: str) -> None:
    assert submit(script, slurm, "x", SLURM_JOB_ID=1) != 0
    assert said(slurm, "brainuad") == []


def test_evaluate_takes_the_model_of_its_number(slurm: Path) -> None:
    places = {"DATA_DIR": "/data", "OUT": "/out", "SLURM_ARRAY_TASK_ID": 1}
    assert submit("evaluate.sbatch", slurm, "/runs/a", "/runs/b", **places) == 0
    assert said(slurm, "brainuad") == ["evaluate", "/runs/b", "/data", "-o", "/out/1"]
    assert submit("evaluate.sbatch", slurm, "/runs/a", **places) != 0


def test_evaluate_by_several_processes(slurm: Path) -> None:
    stand_in(slurm, "scontrol", "printf 'node7\\nnode8\\n'")
    stand_in(slurm, "torchrun", f'printf "%s\\n" "$OMP_NUM_THREADS" "$@" > "{slurm}/torchrun.txt"')
    job = {"SLURM_JOB_NUM_NODES": 2, "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_ID": 123456}
    variables = {"DATA_DIR": "/data", "OUT": "/out", "PROCESSES": 4, "SLURM_CPUS_PER_TASK": 16, **job}
    assert submit("evaluate.sbatch", slurm, "/runs/a", **variables) == 0
    words = said(slurm, "torchrun")
    assert words[:5] == ["4", "--nnodes", "2", "--nproc-per-node", "4"]
    assert words[words.index("--rdzv-endpoint") + 1] == "node7:23456"
    assert words[-6:] == ["brainuad", "evaluate", "/runs/a", "/data", "-o", "/out/0"]


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (1, False), (3, False), (130, True), (143, True)])
def test_train_asks_to_be_continued(slurm: Path, code: int, requeued: bool) -> None:
    places = {"DATA_DIR": "/data", "LOG_DIR": "/runs", "SLURM_JOB_ID": 77, "CODE": code}
    assert submit("train.sbatch", slurm, "experiment=lite", **places) == code
    assert said(slurm, "scontrol") == (["requeue", "77"] if requeued else [])
    words = said(slurm, "brainuad")
    assert words[:2] == ["train", "experiment=lite"]
    assert {"name=77", "hydra.run.dir='/runs/77'", "fold=0", "resume=True"} <= set(words)


@pytest.mark.long
def test_training_goes_on_where_it_was_stopped(slurm: Path, tmp_path: Path) -> None:
    stand_in(slurm, "brainuad", f'exec "{sys.executable}" -m brainuad.experiment.run "${{@:2}}"')
    build_tree(tmp_path / "data")
    environment = {
        "PATH": f"{slurm}:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "DATA_DIR": str(tmp_path / "data"),
        "LOG_DIR": str(tmp_path / "runs"),
        "RUN": "stopped",
        "SLURM_JOB_ID": "5",
    }
    small = ["model.cfg.unet_dim=32", "model.cfg.dim_mults=[1,1]", "model.cfg.num_res_blocks=1"]
    small += ["datamodule.cfg.imageDim=[40,48,32]", "logger.tensorboard=False", "trainer.accelerator=cpu"]
    small += ["callbacks.picture_every_n_epochs=0", "callbacks.checkpoint_every_seconds=0"]
    small += [f"trainer.max_epochs={10**6}"]  # it cannot end before it is stopped
    command = ["bash", str(EXAMPLES / "train.sbatch"), "experiment=smoke", *small]
    fold = tmp_path / "runs" / "stopped" / "fold0"

    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as job:
        deadline = time.monotonic() + 120
        while not (fold / "checkpoints" / "last.ckpt").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        # Slurm signals the step, which `srun` runs, and not the batch file
        children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
        assert len(children) == 1
        os.kill(int(children[0]), signal.SIGTERM)
        _, errors = job.communicate(timeout=120)
    assert job.returncode == 130, errors
    assert "resume=True continues" in errors
    assert said(slurm, "scontrol") == ["requeue", "5"]
    assert not (fold / "training.json").exists()
    before = len((fold / "metrics.csv").read_text().splitlines()) - 1

    total = before + 20  # the number of epochs may change
    command[-1] = f"trainer.max_epochs={total}"
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert again.returncode == 0, again.stderr
    assert again.stdout.split() == [str(tmp_path / "runs" / "stopped")]
    assert json.loads((fold / "training.json").read_text())["steps"] == total
    epochs = [line.split(",")[0] for line in (fold / "metrics.csv").read_text().splitlines()[1:]]
    assert [float(epoch) for epoch in epochs] == list(range(1, total + 1))  # each once: none lost, none repeated
    assert (fold / "evaluation" / "cases.csv").is_file()
