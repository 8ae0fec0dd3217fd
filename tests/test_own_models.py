"""Models that give a map, see slabs or come from another package: trained, calibrated, scored with and evaluated."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run
from tiny import IMAGE, MASK, tiny_detector

import brainuad
from brainuad.config import DataConfig, ModelSettings
from brainuad.detector import Detector, load_model
from brainuad.errors import InputError
from brainuad.experiment import run as experiment
from brainuad.models.base import Inference, Model, slabs_of
from brainuad.models.restoration import RestorationModel, RestorationSettings
from brainuad.registry import MODELS
from brainuad.study import CachedInference

DEMO = Path(brainuad.__file__).parent / "assets" / "demo"
PLUGIN = Path(__file__).parent / "plugin" / "extra_models.py"
NAMES = {"tiny-vae": "TinyVAE", "feature-distance": "FeatureDistance", "blur": "Blur"}
SPLITS = {"IXI067": "train", "IXI096": "val", "IXI097": "val", "IXI105": "val", "patient19": "test"}
GRID = {"imageDim": (160, 192, 144), "rescaleFactor": 4.0, "affine": "used", "smoothing_iterations": 0}
SMALL = [
    "num_folds=1", "trainer.max_epochs=1", "trainer.accelerator=cpu", "logger=none", "name=run",
    "callbacks.picture_every_n_epochs=1", "datamodule.cfg.imageDim=[160,192,144]", "datamodule.cfg.rescaleFactor=4",
    "datamodule.cfg.affine=used", "datamodule.cfg.smoothing_iterations=0", "datamodule.cfg.aug_intensity=False",
]  # fmt: skip
TINY = ["unet_dim=8", "dim_mults=[1,2]", "num_res_blocks=1", "attention_head_dim=8", "unshuffle=2"]


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest, and a package that announces its models as an installed one does."""
    root = tmp_path_factory.mktemp("room")
    lines = ["subject,image,mask,seg,label,split,dataset"]
    for subject, split in SPLITS.items():
        seg = DEMO / f"{subject}_seg.nii.gz"
        known = f"{seg},1,{split},MSLUB" if seg.exists() else f",0,{split},IXI"
        lines.append(f"{subject},{DEMO / subject}_t1.nii.gz,{DEMO / subject}_mask.nii.gz,{known}")
    (root / "cohort.csv").write_text("\n".join(lines))
    about = root / "site" / "extra_models-1.0.dist-info"
    about.mkdir(parents=True)
    shutil.copy(PLUGIN, root / "site")
    points = "".join(f"{name} = extra_models:{kind}\n" for name, kind in NAMES.items())
    (about / "entry_points.txt").write_text(f"[brainuad.models]\n{points}")
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: extra-models\nVersion: 1.0\n")
    return root


@pytest.fixture(scope="module", autouse=True)
def installed(room: Path) -> Iterator[None]:
    """The package can be found, and is forgotten afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(room / "site")
        patch.setenv("XDG_CACHE_HOME", str(room / "cache"))
        patch.setattr(MODELS, "_entries", dict(MODELS._entries))
        patch.setattr(MODELS, "settings", dict(MODELS.settings))
        patch.setattr(MODELS, "_plugins_loaded", False)
        yield


def trained(room: Path, folder: Path, capsys: pytest.CaptureFixture[str], *words: str) -> Path:
    """Train, which evaluates too, and return the model."""
    places = [f"data_dir={room / 'cohort.csv'}", f"log_dir={folder / 'logs'}"]
    code = experiment.main([*words, *SMALL, *places])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    fold = Path(captured.out.strip()) / "fold0"
    assert list((fold / "pictures").glob("*.png"))
    assert (fold / "evaluation" / "summary.json").is_file()
    return fold / "model"


def journey(room: Path, model: Path, out: Path, scores: list[str]) -> dict[str, Path]:
    """Calibrate, score with a report, evaluate by the default score and by ``scores``, and compare, as a user types."""
    cohort, calibrated = room / "cohort.csv", out / "calibrated"
    shown = run("calibrate", model, cohort, "-o", calibrated, "--device", "cpu")
    default = load_model(calibrated, "cpu").scores.default
    assert f"{default}\t1.0%" in shown.stdout
    run("score", IMAGE, "-o", out / "scored", "--model", calibrated, "--brain-mask", MASK, "--device", "cpu")
    sidecar = json.loads(next((out / "scored").glob("*_t1_4mm.json")).read_text())
    assert sidecar["settings"]["score"] == default
    assert sidecar["calibration"]["threshold"] > 0
    report = (out / "scored" / "report.html").read_text()
    assert "data:image/png" in report
    assert "is not shown" not in report
    named = ["--scores", ",".join(scores)] if scores else []
    run("evaluate", calibrated, cohort, "-o", out / "evaluated", "--no-native", "--device", "cpu", *named)
    summary = json.loads((out / "evaluated" / "summary.json").read_text())
    assert set(scores or [default]) <= set(summary["scores"])
    assert not summary["cases"]["failed"]
    assert list((out / "evaluated" / "figures").glob("*.png"))
    run("compare", out / "evaluated", "-o", out / "compared", "--score", f"random,{default}")
    assert default in (out / "compared" / "compare.html").read_text()
    return {kind: out / "scored" / name for kind, name in sidecar["outputs"].items()}


@pytest.mark.long
@pytest.mark.slow(seconds=40)
def test_restoration(room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = [f"model.cfg.{word}" for word in (*TINY, "inverted=0.5", "families=[tissue,mass]")]
    model = trained(room, tmp_path, capsys, "experiment=restoration", *tiny)
    detector = load_model(model, "cpu")
    assert isinstance(detector.model_config, RestorationSettings)
    assert detector.model_config.inverted == 0.5
    assert detector.with_settings(mirrored=False).model_config.mirrored is False
    outputs = journey(room, model, tmp_path, ["model", "model_z", "ssim_ensemble"])
    assert outputs["reconstruction"].is_file()
    assert {"model", "image", "l1"} <= set(load_model(tmp_path / "calibrated", "cpu").health.moments)


@pytest.mark.slow(seconds=20)
@pytest.mark.long
def test_the_healthy_atlas(room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two = tmp_path / "two.csv"
    two.write_text((room / "cohort.csv").read_text().replace("0,val", "0,train", 1))
    words = ["model=atlas", *SMALL, f"log_dir={tmp_path / 'logs'}"]
    assert experiment.main([*words, f"data_dir={room / 'cohort.csv'}"]) == 1
    assert "atlas: 1 healthy scan gives no standard deviation" in capsys.readouterr().err
    assert experiment.main([*words, f"data_dir={two}", "name=two"]) == 0
    fold = Path(capsys.readouterr().out.strip()) / "fold0"
    assert json.loads((fold / "training.json").read_text())["steps"] == 0
    assert (fold / "evaluation" / "summary.json").is_file()
    written = (fold / "model" / "config.yaml").stat().st_mtime_ns
    assert experiment.main([*words, f"data_dir={two}", "name=two", "resume=True"]) == 0
    assert Path(capsys.readouterr().out.strip()) == fold.parent
    assert (fold / "model" / "config.yaml").stat().st_mtime_ns == written  # it was complete
    detector = load_model(fold / "model", "cpu")
    assert detector.model_config.grid == (40, 48, 36)
    assert detector.provenance["training_scans"] == 2
    run("models", "verify", fold / "model", "--device", "cpu")
    assert "reconstruction" not in journey(room, fold / "model", tmp_path, ["model", "intensity_dark"])


@pytest.mark.slow(seconds=30)
@pytest.mark.long
def test_a_model_of_another_package_that_reconstructs(
    room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = trained(room, tmp_path, capsys, "model=tiny-vae", "trainer=smoke", "model.cfg.latent_dim=5")
    assert load_model(model, "cpu").model_config.latent_dim == 5
    assert journey(room, model, tmp_path, [])["reconstruction"].is_file()
    run("score", IMAGE, "-o", tmp_path / "none", "--model", model, "--score", "model", code=1)


@pytest.mark.long
@pytest.mark.slow(seconds=30)
def test_a_model_of_another_package_with_nothing_but_a_map(
    room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = trained(room, tmp_path, capsys, "model=feature-distance", "trainer=smoke", "model.cfg.scale=50")
    assert "reconstruction" not in journey(room, model, tmp_path, ["model", "model_z"])
    assert not list((tmp_path / "scored").glob("*reconstruction*"))
    shown = run("evaluate", model, room / "cohort.csv", "-o", tmp_path / "none", "--scores", "l1_z", code=1)
    assert "l1_z: cannot be computed: model makes a map and no reconstruction. Choose one of" in shown.stderr


@pytest.mark.slow(seconds=20)
def test_a_model_without_a_weight(room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert MODELS.settings.get("blur") is None  # it has none of its own
    settings = ModelSettings(name="blur")
    blur = Detector(MODELS["blur"](settings), settings, DataConfig(**GRID))
    assert blur.device == torch.device("cpu")
    blur.save(tmp_path / "blur")
    assert "reconstruction" not in journey(room, tmp_path / "blur", tmp_path, [])
    words = ["model=blur", *SMALL, f"data_dir={room / 'cohort.csv'}", f"log_dir={tmp_path}"]
    assert experiment.main(words) == 1
    assert "blur: has no weights to train" in capsys.readouterr().err


def test_a_setting_of_another_model_is_wrong_usage(room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert experiment.main(["model.cfg.latent_dim=3", "data_dir=d", "log_dir=l"]) == 2
    error = capsys.readouterr().err
    assert "model.cfg.latent_dim: no setting of the model ddpm. It is one of ae, vae, tiny-vae: add model=ae" in error
    assert error.count("\n") == 1


# --- the road


@pytest.fixture(scope="module")
def restorer() -> Detector:
    settings = RestorationSettings(unet_dim=8, dim_mults=(1, 2), num_res_blocks=1, attention_head_dim=8, mirrored=False)
    torch.manual_seed(3)
    model = RestorationModel(settings)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return Detector(model.requires_grad_(False).eval(), settings, DataConfig(**GRID), name="restorer")


@pytest.fixture(scope="module")
def volume() -> np.ndarray:
    return np.random.default_rng(1).random((24, 20, 19), dtype=np.float32)


def test_every_slice_is_seen_with_its_neighbours(restorer: Detector, volume: np.ndarray) -> None:
    mask = volume > 0.05
    found = restorer.infer(volume, mask)
    assert found.reconstruction is not None
    assert found.anomaly is not None
    assert (found.reconstruction.shape, found.anomaly.shape) == ((1, *volume.shape), volume.shape)
    for z in (0, 7, 18):  # in any batch, and at both ends, where the outermost slice is repeated
        beside = np.clip(np.arange(z - 2, z + 3), 0, 18)
        slab = torch.from_numpy(volume[:, :, beside]).permute(2, 0, 1)[None]
        restored, marks = restorer.model.both(slab)
        torch.testing.assert_close(found.reconstruction[0, :, :, z], restored[0, 0], rtol=0, atol=1e-5)
        torch.testing.assert_close(found.anomaly[:, :, z], marks[0, 0], rtol=0, atol=1e-5)
    assert torch.equal(restorer.reconstruct(volume), found.reconstruction)


def test_both_come_of_the_same_network_calls(
    restorer: Detector, volume: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, original = [], RestorationModel.both
    monkeypatch.setattr(
        RestorationModel, "both", lambda self, images: calls.append(len(images)) or original(self, images)
    )
    maps = restorer.maps(volume, volume > 0.05, ["model", "l1"])
    assert sum(calls) == volume.shape[2]
    assert set(maps.raw) == set(maps.final) == {"model", "l1"}
    assert not maps.raw["model"][volume <= 0.05].any()
    unclean = restorer.maps(volume, volume > 0.05, ["model"], clean=False)
    np.testing.assert_array_equal(unclean.final["model"], unclean.raw["model"])


def test_what_is_kept_is_what_was_made(
    restorer: Detector, volume: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = CachedInference(Detector(restorer.model, restorer.model_config, DataConfig(cache_dir=str(tmp_path))))
    mask = volume > 0.05
    first, made = kept(volume, mask, 3), restorer.infer(volume, mask, 3)
    assert torch.equal(first.anomaly, made.anomaly)
    assert torch.equal(first.reconstruction, made.reconstruction.half().float())
    monkeypatch.setattr(Detector, "infer", lambda *args, **how: pytest.fail("it is kept"))
    again = kept(volume, mask, 3)
    assert torch.equal(again.anomaly, first.anomaly)
    assert torch.equal(kept(volume, None, 3).reconstruction, first.reconstruction)


def test_a_score_that_a_model_cannot_give_is_refused(restorer: Detector, volume: np.ndarray) -> None:
    restorer.scores.check_made("model_z")
    with pytest.raises(
        InputError, match="model: cannot be computed: tiny makes a reconstruction and no map of its own"
    ):
        tiny_detector().maps(volume, volume > 0, ["model"])
    with pytest.raises(InputError, match="needs healthy scans to compare with; restorer is not calibrated on any"):
        restorer.scores.check("model_z")
    with pytest.raises(InputError, match=r"severity: is no setting of restoration\. It has name, "):
        restorer.with_settings(severity=1)


def test_slabs_of_a_volume(volume: np.ndarray) -> None:
    tensor = torch.from_numpy(volume)
    assert torch.equal(slabs_of(tensor), tensor.permute(2, 0, 1)[:, None])
    slabs = slabs_of(tensor > 0.5, 1)
    assert slabs.shape == (19, 3, 24, 20)
    assert torch.equal(slabs[0, 0], slabs[0, 1])
    assert torch.equal(slabs[7, 2], tensor[:, :, 8] > 0.5)


def test_a_model_has_what_it_overrides() -> None:
    class Nothing(Model):
        pass

    nothing, images = Nothing(), torch.rand(2, 1, 4, 4)
    assert nothing.infer(images, images > 0, None) == Inference(None, None)
    assert nothing.draw(2, (4, 4), torch.Generator()) == {}
    assert not nothing.fits
    with pytest.raises(NotImplementedError):
        nothing.loss(images, images > 0, {})


def test_settings_of_all_models_of_before_are_read(tmp_path: Path) -> None:
    detector = tiny_detector()
    detector.save(tmp_path)
    path = tmp_path / "config.yaml"
    path.write_text(path.read_text().replace("model:\n", "model:\n  neighbours: 2\n  families: []\n"))
    assert Detector.load(tmp_path).fingerprint == detector.fingerprint
