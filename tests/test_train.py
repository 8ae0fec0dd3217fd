from __future__ import annotations

import csv
import math
import os
import pickle
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from brainuad.config import ExperimentConfig, TrainerConfig
from brainuad.data.slices import TrainingVolumes, stack_volumes
from brainuad.errors import InputError
from brainuad.modelfile import read_model
from brainuad.train import fit, is_complete
from brainuad.train.callbacks import Epochs
from brainuad.train.checkpoint import AtomicCheckpointIO
from brainuad.train.fit import caught_interrupts, resolve_precision, total_steps
from brainuad.train.module import (
    Training,
    batch_indices,
    count_batches,
    learning_rate_share,
    seeded_generator,
    validation_slices,
)

FILES = Path(__file__).parent / "files"


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Any:
    """Sums in another order, and so other bits, would come of another number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def volumes_of_one_scan() -> TrainingVolumes:
    """Five volumes out of one real scan: (5, 24, 32, 20)."""
    image = np.asarray(nib.load(FILES / "mslub19_t1_4mm.nii.gz").dataobj, dtype=np.float32) / 255
    mask = np.asarray(nib.load(FILES / "mslub19_mask_4mm.nii.gz").dataobj) > 0
    inner = slice(8, 32), slice(8, 40), slice(5, 25)
    image, mask = image[inner], mask[inner]
    return stack_volumes([(image * brightness, mask) for brightness in (1.0, 0.9, 0.8, 0.7, 0.6)])


@pytest.fixture(scope="module")
def train_volumes() -> TrainingVolumes:
    return volumes_of_one_scan()


@pytest.fixture(scope="module")
def val_volumes(train_volumes: TrainingVolumes) -> TrainingVolumes:
    return TrainingVolumes(train_volumes.images[:2].flip(1), train_volumes.masks[:2].flip(1))


def tiny(**changes: Any) -> ExperimentConfig:
    """Three steps an epoch, two epochs; changes name fields of the experiment or of its trainer."""
    config = ExperimentConfig()
    model, data, trainer = config.model.cfg, config.datamodule.cfg, config.trainer
    model.unet_dim, model.dim_mults, model.num_res_blocks, model.attention_head_dim = 32, (1, 1), 1, 32
    model.unshuffle = 2
    data.batch_size, data.lr = 2, 1e-3
    trainer.max_epochs, trainer.accelerator, trainer.warmup_steps = 2, "cpu", 4
    config.callbacks.picture_every_n_epochs = 0
    config.logger.tensorboard = False
    for name, value in changes.items():
        setattr(config if hasattr(config, name) else trainer, name, value)
    return config


def load(path: Path) -> dict[str, Any]:
    return dict(torch.load(path, weights_only=True))


@pytest.fixture(scope="module")
def unbroken(
    train_volumes: TrainingVolumes, val_volumes: TrainingVolumes, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    config = tiny()
    config.callbacks.picture_every_n_epochs = 1
    config.logger.tensorboard = True
    fit(config, train_volumes, val_volumes, folder)
    return folder


def interrupt_after(step: int, monkeypatch: pytest.MonkeyPatch, stop: Callable[[Epochs], None]) -> None:
    """Call ``stop`` when step ``step`` is done."""
    original = Epochs.on_train_batch_end

    def hook(self: Epochs, trainer: Any, *args: Any) -> None:
        if trainer.global_step == step:
            stop(self)
        original(self, trainer, *args)

    monkeypatch.setattr(Epochs, "on_train_batch_end", hook)


def assert_same_training(first: Path, second: Path) -> None:
    a, b = load(first / "checkpoints" / "last.ckpt"), load(second / "checkpoints" / "last.ckpt")
    assert a["global_step"] == b["global_step"] == 6
    assert {name.split(".")[0] for name in a["state_dict"]} == {"model", "average"}
    for name, value in a["state_dict"].items():
        assert torch.equal(value, b["state_dict"][name]), name
    for number, state in a["optimizer_states"][0]["state"].items():
        for name, value in state.items():
            assert torch.equal(value, b["optimizer_states"][0]["state"][number][name])
    assert a["callbacks"] == b["callbacks"]
    assert [row["val_loss"] for row in table(first)] == [row["val_loss"] for row in table(second)]


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as handle:
        return list(csv.DictReader(handle))


@pytest.mark.parametrize("step", [2, 3, 4])
def test_interrupted_and_resumed_equals_unbroken(
    step: int,
    unbroken: Path,
    train_volumes: TrainingVolumes,
    val_volumes: TrainingVolumes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(step)  # the global generator has no say
    with monkeypatch.context() as patch:
        interrupt_after(step, patch, lambda epochs: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(KeyboardInterrupt):
            fit(tiny(), train_volumes, val_volumes, tmp_path)
    assert load(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == step
    assert not is_complete(tiny(), tmp_path)
    torch.manual_seed(100 + step)
    fit(tiny(resume=True), train_volumes, val_volumes, tmp_path)
    assert_same_training(unbroken, tmp_path)


def test_a_loss_that_is_not_finite_ends_training(
    train_volumes: TrainingVolumes,
    val_volumes: TrainingVolumes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = Training.training_step

    def overflow(self: Training, batch: int, batch_idx: int) -> torch.Tensor:
        loss = original(self, batch, batch_idx) * (math.inf if self.global_step == 4 else 1)
        self.epoch_losses[-1] = loss.detach()
        return loss

    monkeypatch.setattr(Training, "training_step", overflow)
    config = tiny()
    config.callbacks.checkpoint_every_seconds = 0
    with pytest.raises(InputError, match=r"NaN or infinite at step 5\. .*lr, or with trainer\.precision=32"):
        fit(config, train_volumes, val_volumes, tmp_path)
    last = load(tmp_path / "checkpoints" / "last.ckpt")
    assert last["global_step"] == 4
    assert all(value.isfinite().all() for value in last["state_dict"].values())
    assert not is_complete(tiny(), tmp_path)
    assert [row["step"] for row in table(tmp_path)] == ["3"]


def test_longer_run_continues_a_finished_one(
    unbroken: Path, train_volumes: TrainingVolumes, val_volumes: TrainingVolumes, tmp_path: Path
) -> None:
    fit(tiny(max_epochs=1), train_volumes, val_volumes, tmp_path)
    assert is_complete(tiny(max_epochs=1), tmp_path)
    fit(tiny(resume=True), train_volumes, val_volumes, tmp_path)
    assert_same_training(unbroken, tmp_path)


def test_steps_limit_inside_an_epoch(
    unbroken: Path, train_volumes: TrainingVolumes, val_volumes: TrainingVolumes, tmp_path: Path
) -> None:
    fit(tiny(max_steps=4), train_volumes, val_volumes, tmp_path)
    assert load(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 4
    fit(tiny(resume=True), train_volumes, val_volumes, tmp_path)
    weights, expected = (load(f / "checkpoints" / "last.ckpt")["state_dict"] for f in (tmp_path, unbroken))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_what_a_run_leaves(unbroken: Path) -> None:
    best = load(unbroken / "checkpoints" / "best.ckpt")
    assert "optimizer_states" not in best
    model, model_config, data_config, provenance, calibration = read_model(unbroken / "model")
    averaged = {
        name.removeprefix("average."): value
        for name, value in best["state_dict"].items()
        if name.startswith("average.")
    }
    exported = model.state_dict()
    assert exported.keys() == averaged.keys()
    assert all(torch.equal(exported[name], averaged[name]) for name in averaged)
    assert model_config == tiny().model.cfg
    assert data_config.batch_size == 2
    assert calibration is None
    rows = table(unbroken)
    assert [(row["epoch"], row["step"]) for row in rows] == [("1", "3"), ("2", "6")]
    best_row = min(rows, key=lambda row: float(row["val_loss"]))
    assert str(provenance["epoch"]) == best_row["epoch"]
    assert provenance["validation_loss"] == pytest.approx(float(best_row["val_loss"]), rel=1e-4)
    scans = provenance["training_scans"], provenance["validation_scans"]
    assert (provenance["fold"], provenance["step"], *scans) == (0, int(best_row["step"]), 5, 2)
    assert sorted(path.name for path in (unbroken / "pictures").iterdir()) == [
        "epoch00001.png",
        "epoch00002.png",
    ]
    assert (unbroken / "pictures" / "epoch00001.png").read_bytes().startswith(b"\x89PNG")
    assert list((unbroken / "tensorboard").glob("events.*"))
    assert not list(unbroken.rglob(".partial-*"))


def test_killed_while_writing_keeps_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)

    def dies(checkpoint: Any, target: Path) -> None:
        Path(target).write_bytes(b"half a check")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", dies)
    with pytest.raises(KeyboardInterrupt):
        AtomicCheckpointIO().save_checkpoint({"step": 2}, path)
    assert AtomicCheckpointIO().load_checkpoint(path) == {"step": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]


def test_other_settings_or_data_are_refused(
    unbroken: Path, train_volumes: TrainingVolumes, val_volumes: TrainingVolumes, tmp_path: Path
) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").symlink_to(unbroken / "checkpoints" / "last.ckpt")
    other = tiny(resume=True)
    other.datamodule.cfg.lr, other.seed = 2e-3, 1
    with pytest.raises(InputError, match=r"datamodule\.cfg\.lr=0\.001 there, 0\.002 here.*seed=3141 there"):
        fit(other, train_volumes, val_volumes, tmp_path)
    darker = TrainingVolumes(train_volumes.images * 0.5, train_volumes.masks)
    with pytest.raises(InputError, match="other volumes"):
        fit(tiny(resume=True), darker, val_volumes, tmp_path)


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def test_checkpoints_run_no_code(
    train_volumes: TrainingVolumes, val_volumes: TrainingVolumes, tmp_path: Path
) -> None:
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    torch.save({"global_step": 1, "brainuad": Trap(tmp_path / "trapped")}, last)
    for damage in (None, last.read_bytes()[:100], b"", pickle.dumps(Trap(tmp_path / "trapped"))):
        if damage is not None:
            last.write_bytes(damage)
        with pytest.raises(InputError, match=r"last\.ckpt: is damaged"):
            fit(tiny(resume=True), train_volumes, val_volumes, tmp_path / "run")
    assert not (tmp_path / "trapped").exists()


def test_first_step_warms_up_and_averages(
    train_volumes: TrainingVolumes, val_volumes: TrainingVolumes, tmp_path: Path
) -> None:
    fit(tiny(max_steps=1), train_volumes, val_volumes, tmp_path)
    after = load(tmp_path / "checkpoints" / "last.ckpt")["state_dict"]
    before = Training(tiny(), train_volumes, val_volumes).model.state_dict()
    largest = 0.0
    for name, start in before.items():
        current, average = after[f"model.{name}"], after[f"average.{name}"]
        largest = max(largest, (current - start).abs().max().item())
        # the first decay is min(0.999, (1 + 0) / (10 + 0))
        torch.testing.assert_close(average, 0.1 * start + 0.9 * current)
    # Adam's first step is the learning rate in every weight, here a quarter of it
    assert largest == pytest.approx(1e-3 / 4, rel=1e-3)


def attached(config: ExperimentConfig, train: TrainingVolumes, val: TrainingVolumes) -> Training:
    """A training module outside of a run."""
    from lightning.pytorch import Trainer

    module = Training(config, train, val)
    module.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    # a new network returns zeros and would give every slice the same loss but for the slice
    with torch.no_grad():
        for parameter in module.average.parameters():
            parameter.add_(
                torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)), alpha=0.05
            )
    return module


def test_validation_loss_is_fixed_but_for_the_reference(
    train_volumes: TrainingVolumes, val_volumes: TrainingVolumes
) -> None:
    fixed = attached(tiny(), train_volumes, val_volumes)
    assert fixed.validation_loss(1) == fixed.validation_loss(2)
    fresh = attached(tiny(reference=True), train_volumes, val_volumes)
    assert fresh.validation_loss(1) == fresh.validation_loss(1)
    assert fresh.validation_loss(1) != fresh.validation_loss(2)


def test_training_batch_depends_on_seed_and_step_only(
    train_volumes: TrainingVolumes, val_volumes: TrainingVolumes
) -> None:
    first, second = (attached(tiny(), train_volumes, val_volumes) for _ in range(2))
    second.training_batch(0)
    torch.rand(1)
    assert torch.equal(first.training_batch(5).images, second.training_batch(5).images)
    assert not torch.equal(first.training_batch(3).images, second.training_batch(0).images)
    other = attached(tiny(seed=1), train_volumes, val_volumes)
    assert not torch.equal(first.training_batch(0).images, other.training_batch(0).images)


@pytest.mark.parametrize("devices", [2, 3])
def test_devices_share_the_batch_of_a_step(
    devices: int, train_volumes: TrainingVolumes, val_volumes: TrainingVolumes
) -> None:
    config = tiny()
    config.datamodule.cfg.batch_size = 4  # of five volumes: batches of four and of one
    module = attached(config, train_volumes, val_volumes)
    module._fabric = None
    for step in range(2):
        module._trainer = SimpleNamespace(world_size=1, global_rank=0, global_step=step)
        alone, loss = module.training_batch(step), module.training_step(0, 0)
        shares, losses = [], []
        for rank in range(devices):
            module._trainer = SimpleNamespace(world_size=devices, global_rank=rank, global_step=step)
            shares.append(module.training_batch(step))
            losses.append(module.training_step(0, 0))
        counted = [share.images for share in shares if share.weight]
        assert torch.equal(torch.cat(counted), alone.images)
        torch.testing.assert_close(torch.stack(losses).mean(), loss)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 8), st.integers(0, 3), st.integers(0, 2**31))
def test_every_epoch_is_a_permutation(volumes: int, batch_size: int, epoch: int, seed: int) -> None:
    batches = -(-volumes // batch_size)
    steps = range(epoch * batches, (epoch + 1) * batches)
    drawn = torch.cat([batch_indices(volumes, batch_size, batches, seed, step) for step in steps])
    assert sorted(drawn.tolist()) == list(range(volumes))


def test_generators_are_pure_and_independent() -> None:
    draws = {
        (seed, stream, index): torch.rand(4, generator=seeded_generator(seed, stream, index)).tolist()
        for seed in (0, 1)
        for stream in ("a", "b")
        for index in (0, 1)
    }
    assert len({tuple(draw) for draw in draws.values()}) == len(draws)
    assert draws[1, "b", 1] == torch.rand(4, generator=seeded_generator(1, "b", 1)).tolist()


def test_validation_slices_lie_in_the_brain(val_volumes: TrainingVolumes) -> None:
    numbers, slices = validation_slices(val_volumes)
    assert numbers.tolist() == [0] * 4 + [1] * 4
    assert all(val_volumes.masks[number, :, :, z].any() for number, z in zip(numbers, slices, strict=True))
    assert len(set(slices[:4].tolist())) == 4


@pytest.mark.parametrize(
    ("limit", "batches"), [(1.0, 5), (0.5, 2), (3, 3), (50, 5), (0, None), (0.1, None), (1.5, None)]
)
def test_limit_train_batches(limit: float, batches: int | None) -> None:
    config = tiny(limit_train_batches=limit)
    if batches is None:
        with pytest.raises(InputError, match="limit_train_batches"):
            count_batches(9, config)
    else:
        assert count_batches(9, config) == batches


def test_total_steps() -> None:
    assert total_steps(TrainerConfig(max_epochs=4), 10) == 40
    assert total_steps(TrainerConfig(max_epochs=4, max_steps=15), 10) == 15
    assert total_steps(TrainerConfig(max_epochs=1, max_steps=15), 10) == 10


def test_auto_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert resolve_precision(TrainerConfig()) == "bf16-mixed"
    assert resolve_precision(TrainerConfig(accelerator="cpu")) == "32-true"
    assert resolve_precision(TrainerConfig(precision="16-mixed")) == "16-mixed"
    assert resolve_precision(TrainerConfig(precision="16")) == "16-mixed"
    assert resolve_precision(TrainerConfig(precision="bf16")) == "bf16-mixed"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    assert resolve_precision(TrainerConfig()) == "32-true"


def test_bf16_on_the_cpu(
    train_volumes: TrainingVolumes, val_volumes: TrainingVolumes, tmp_path: Path
) -> None:
    fit(tiny(max_steps=1, precision="bf16-mixed"), train_volumes, val_volumes, tmp_path)
    weights = load(tmp_path / "checkpoints" / "last.ckpt")["state_dict"]
    assert all(value.dtype == torch.float32 for value in weights.values())


def test_a_fused_optimiser_clips_and_steps_alike(
    train_volumes: TrainingVolumes,
    val_volumes: TrainingVolumes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Fused Adam, which is taken on CUDA, in the precision that is taken there."""
    plain = torch.optim.Adam

    def fused_adam(parameters: Any, lr: float, fused: bool | None) -> torch.optim.Optimizer:
        assert fused is None  # this is a processor
        return plain(parameters, lr=lr, fused=True)

    fit(tiny(max_steps=2, precision="bf16-mixed"), train_volumes, val_volumes, tmp_path / "plain")
    monkeypatch.setattr(torch.optim, "Adam", fused_adam)
    fit(tiny(max_steps=2, precision="bf16-mixed"), train_volumes, val_volumes, tmp_path / "fused")
    found, expected = (
        load(tmp_path / name / "checkpoints" / "last.ckpt")["state_dict"] for name in ("fused", "plain")
    )
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


def test_gradients_are_clipped(
    train_volumes: TrainingVolumes, val_volumes: TrainingVolumes, tmp_path: Path
) -> None:
    fit(tiny(max_steps=1, gradient_clip_val=1e-12), train_volumes, val_volumes, tmp_path)
    after = load(tmp_path / "checkpoints" / "last.ckpt")["state_dict"]
    before = Training(tiny(), train_volumes, val_volumes).model.state_dict()
    # far below Adam's epsilon, gradients hardly move a weight
    assert max((after[f"model.{name}"] - start).abs().max() for name, start in before.items()) < 1e-6


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_compiled_training_is_training(
    train_volumes: TrainingVolumes, val_volumes: TrainingVolumes, tmp_path: Path
) -> None:
    states = []
    for compiled in (True, False):
        folder = tmp_path / str(compiled)
        fit(tiny(max_steps=2, compile=compiled), train_volumes, val_volumes, folder)
        states.append(load(folder / "checkpoints" / "last.ckpt")["state_dict"])
    found, expected = states
    assert list(found) == list(expected)
    differences = torch.cat([(found[name] - value).abs().flatten() for name, value in expected.items()])
    assert differences.mean() < 1e-5  # two steps move a weight by up to 8e-4


@pytest.mark.parametrize(("seconds", "steps"), [(0.0, [1, 2, 3, 4, 5, 6]), (3600.0, [6])])
def test_checkpoints_by_the_clock(
    train_volumes: TrainingVolumes,
    val_volumes: TrainingVolumes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    steps: list[int],
) -> None:
    written = []
    original = AtomicCheckpointIO.save_checkpoint

    def noted(self: AtomicCheckpointIO, checkpoint: dict[str, Any], path: Any, **options: Any) -> None:
        if Path(path).name == "last.ckpt":
            written.append(checkpoint["global_step"])
        original(self, checkpoint, path, **options)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", noted)
    config = tiny()
    config.callbacks.checkpoint_every_seconds = seconds
    fit(config, train_volumes, val_volumes, tmp_path)
    assert written == steps


def test_without_averaging(
    train_volumes: TrainingVolumes, val_volumes: TrainingVolumes, tmp_path: Path
) -> None:
    fit(tiny(max_steps=1, ema_decay=0.0), train_volumes, val_volumes, tmp_path)
    weights = load(tmp_path / "checkpoints" / "last.ckpt")["state_dict"]
    exported = read_model(tmp_path / "model")[0].state_dict()
    assert all(torch.equal(value, weights[f"model.{name}"]) for name, value in exported.items())


def test_wandb_that_is_not_installed(
    train_volumes: TrainingVolumes,
    val_volumes: TrainingVolumes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    config = tiny()
    config.logger.wandb = True
    with pytest.raises(InputError, match="wandb is not installed"):
        fit(config, train_volumes, val_volumes, tmp_path)


def test_device_that_is_not_there(
    train_volumes: TrainingVolumes,
    val_volumes: TrainingVolumes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"trainer: .*(?i:cuda|gpu)"):
        fit(tiny(accelerator="cuda"), train_volumes, val_volumes, tmp_path)


def test_second_interrupt_acts_as_usual() -> None:
    # a process that was started in the background may have been told to ignore SIGINT
    outside = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with caught_interrupts() as event:
            signal.raise_signal(signal.SIGINT)
            assert event.is_set()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, outside)


def test_progress_lines_go_to_stderr(
    train_volumes: TrainingVolumes,
    val_volumes: TrainingVolumes,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fit(tiny(max_steps=1), train_volumes, val_volumes, tmp_path)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("step 1/1  epoch 0.3  loss ")


def test_learning_rate_rises_stays_and_falls() -> None:
    shares = [learning_rate_share(step, 10, 4, 5) for step in range(10)]
    assert shares == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])
    assert learning_rate_share(0, 10, 0, 0) == 1


def test_training_starts_from_the_weights_of_another_model(
    unbroken: Path, train_volumes: TrainingVolumes, val_volumes: TrainingVolumes
) -> None:
    start = Training(tiny(initial_weights=str(unbroken / "model")), train_volumes, val_volumes)
    other = load_file(unbroken / "model" / "model.safetensors")
    assert all(torch.equal(value, other[name]) for name, value in start.average.state_dict().items())
    with pytest.raises(InputError, match="lite-t1: has weights of another network"):
        Training(tiny(initial_weights="lite-t1"), train_volumes, val_volumes)
