"""The sweep over SSIM widths, on real scans of 4 mm with a tiny random detector."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import image as mpl_image
from tiny import IMAGE, MASK, tiny_detector
from typer.testing import CliRunner

from brainuad.cli import app
from brainuad.cli.sweep import parse_sigmas
from brainuad.config import DataConfig
from brainuad.data.cohort import Case
from brainuad.data.loading import content_key, load_case
from brainuad.detector import Detector
from brainuad.errors import InputError
from brainuad.evaluation import average_precision
from brainuad.scoring import postprocess, ssim_ensemble, ssim_maps
from brainuad.scoring.ensembles import ENSEMBLES, ensemble, learn_weights, slicewise_ssim_maps
from brainuad.scoring.health import HealthyStatistics
from brainuad.scoring.names import IMAGE as INTENSITY
from brainuad.study import case_seed
from brainuad.study.sweep import Ablations, run_sweep
from brainuad.study.sweep_page import BASE, RAW, SLICES

SIGMAS = (0.5, 1.1, 2.0)
ALL = Ablations(windows=True, postprocessing=True, timesteps=(250,), draws=(1, 2), shared_noise=True)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    """The same brain with a dark lesion in three places: to learn from, and to test on."""
    folder = tmp_path_factory.mktemp("cohort")
    image, mask = nib.load(IMAGE), nib.load(MASK)
    brain = mask.get_fdata() > 0
    rng = np.random.default_rng(0)
    found = []
    for number, split in enumerate(("val", "test", "test")):
        centre = np.argwhere(brain)[rng.integers(brain.sum())]
        distance = np.linalg.norm(np.indices(brain.shape).T - centre, axis=-1).T
        lesion = brain & (distance < 3 + number)
        values = np.where(lesion, 0.2, 1) * image.get_fdata()
        paths = [folder / f"{number}_{kind}.nii.gz" for kind in ("image", "lesion")]
        nib.save(nib.Nifti1Image(values.astype(np.float32), image.affine), paths[0])
        nib.save(nib.Nifti1Image(lesion.astype(np.uint8), image.affine), paths[1])
        found.append(Case(f"s{number}", "painted", split, paths[0], MASK, paths[1], 1, None))
    return found


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Detector:
    grid = {"affine": "ignored", "imageDim": (40, 48, 36), "rescaleFactor": 1.0}
    return tiny_detector(cache_dir=str(tmp_path_factory.mktemp("cache")), **grid)


@pytest.fixture(scope="module")
def results(detector: Detector, cases: list[Case], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    run_sweep(detector, cases, folder, sigmas=SIGMAS, ensembles=list(ENSEMBLES), ablations=ALL)
    return folder


def value(table: pd.DataFrame, case: Case, variant: str, kind: str, name: str) -> float:
    rows = table[(table["case"] == case.subject) & (table["variant"] == variant) & (table["kind"] == kind)]
    return rows[rows["name"] == name]["average_precision"].item()


def test_values_are_those_of_the_maps(results: Path, detector: Detector, cases: list[Case]) -> None:
    table = pd.read_csv(results / "sweep.csv", dtype={"name": str})
    case = cases[1]
    prepared = load_case(case, detector.data_config)
    image, lesion, mask = torch.from_numpy(prepared.image), prepared.lesion, prepared.mask
    mean = detector.reconstruct(prepared.image, case_seed(0, case)).half().float()[0]

    def expected(similarity: torch.Tensor, *, cleaned: bool = True) -> float:
        anomaly = postprocess(1 - similarity, mask).numpy() if cleaned else 1 - similarity.numpy()
        return average_precision(anomaly[mask], lesion[mask])

    single = ssim_maps(mean, image, sigmas=[2.0])[0]
    assert value(table, case, BASE, "width", "2") == pytest.approx(expected(single))
    assert value(table, case, RAW, "width", "2") == pytest.approx(expected(single, cleaned=False))
    both = ssim_ensemble(mean, image, sigmas=detector.model_config.sigma_ens)
    assert value(table, case, BASE, "ensemble", "default") == pytest.approx(expected(both))
    flat = slicewise_ssim_maps(mean, image, sigmas=[1.1])[0]
    assert value(table, case, SLICES, "width", "1.1") == pytest.approx(expected(flat))
    other = detector.with_settings(test_timesteps=250).reconstruct(prepared.image, case_seed(0, case))
    single = ssim_maps(other.half().float()[0], image, sigmas=[1.1])[0]
    assert value(table, case, "t = 250", "width", "1.1") == pytest.approx(expected(single))
    twice = detector.with_settings(noise_draws=2).reconstruct(prepared.image, case_seed(0, case))
    single = ssim_maps(twice.half().float()[0], image, sigmas=[1.1])[0]
    assert value(table, case, "2 draws averaged", "width", "1.1") == pytest.approx(expected(single))
    assert value(table, case, "1 draws averaged", "width", "1.1") == value(table, case, BASE, "width", "1.1")
    assert value(table, case, "shared noise", "width", "1.1") > 0


def test_every_map_of_every_test_case_is_there(results: Path, cases: list[Case]) -> None:
    table = pd.read_csv(results / "sweep.csv", dtype={"name": str})
    assert set(table["case"]) == {"s1", "s2"}, "validation cases only teach"
    assert not table.duplicated(["case", "variant", "kind", "name"]).any()
    base = table[(table["variant"] == BASE) & (table["case"] == "s1")]
    assert list(base[base["kind"] == "width"]["name"]) == ["0.5", "1.1", "2"]
    assert list(base[base["kind"] == "ensemble"]["name"]) == list(ENSEMBLES)
    about = json.loads((results / "sweep.json").read_text())
    assert about["learnt"]["on"] == ["painted s0"]
    assert sum(about["learnt"]["weights"].values()) == pytest.approx(1)


def test_intensities_are_compared_with_healthy_validation_scans(
    detector: Detector, cases: list[Case], results: Path, tmp_path: Path
) -> None:
    assert "intensity_atlas" not in set(pd.read_csv(results / "sweep.csv", dtype={"name": str})["name"])
    # The subject's own scan among them is no help, whatever its name: it is left out.
    healthy = [
        replace(cases[place], subject=subject, split="val", lesion=None, label=0, dataset="painted")
        for place, subject in ((0, "h0"), (2, "h1"), (1, "other name of s1"))
    ]
    images = [load_case(case, detector.data_config) for case in healthy]
    table, _ = run_sweep(detector, [*cases, *healthy], tmp_path, sigmas=[0.5])
    statistics = HealthyStatistics([INTENSITY], images[0].mask.shape)
    for other in images[:2]:
        statistics.add({INTENSITY: other.image}, other.mask)
    prepared = load_case(cases[1], detector.data_config)
    assert prepared.lesion is not None
    anomaly = postprocess(statistics.score("intensity_atlas", prepared.image, prepared.mask), prepared.mask).numpy()
    expected = average_precision(anomaly[prepared.mask], prepared.lesion[prepared.mask])
    assert value(table, cases[1], BASE, "score", "intensity_atlas") == pytest.approx(expected)
    assert value(table, cases[1], BASE, "score", "random") < 0.2


def test_weights_are_learnt_from_other_people_than_the_measured(
    detector: Detector, cases: list[Case], tmp_path: Path
) -> None:
    validation = [replace(case, split="val") for case in cases[:2]]
    table, failed = run_sweep(detector, validation, tmp_path / "val", sigmas=[0.5], ensembles=["learnt"], split="val")
    assert not failed
    for measured, teacher in (validation, validation[::-1]):
        pair = [replace(measured, split="test"), teacher]
        alone, _ = run_sweep(detector, pair, tmp_path / measured.subject, sigmas=[0.5], ensembles=["learnt"])
        assert value(table, measured, BASE, "ensemble", "learnt") == value(alone, measured, BASE, "ensemble", "learnt")
    _, failed = run_sweep(detector, validation[:1], tmp_path / "one", sigmas=[0.5], ensembles=["learnt"], split="val")
    assert "needs validation scans with drawn lesions of other people; there is none" in failed[0]


def test_files_are_hashed_once(
    detector: Detector, cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[Case] = []
    original = content_key

    def counted(case: Case, config: DataConfig) -> str:
        hashed.append(case)
        return original(case, config)

    monkeypatch.setattr("brainuad.study.loader.content_key", counted)
    validation = [replace(case, split="val") for case in cases]
    run_sweep(detector, validation, tmp_path, sigmas=[0.5], ensembles=["learnt"], split="val")
    assert sorted(case.subject for case in hashed) == ["s0", "s1", "s2"]


@pytest.mark.parametrize("split", ["val", "test"])
def test_sets_are_chosen_in_every_split(detector: Detector, cases: list[Case], tmp_path: Path, split: str) -> None:
    both = [replace(case, split=split, dataset=name) for case, name in zip(cases, "ABB", strict=True)]
    table, _ = run_sweep(detector, both, tmp_path, sigmas=[0.5], split=split, sets=["A"])
    assert set(table["set"]) == {"A"}


def test_page_and_figure_show_the_means(results: Path) -> None:
    summary = pd.read_csv(results / "summary.csv", dtype={"name": str})
    row = summary[
        (summary["variant"] == BASE) & (summary["name"] == "1.1") & (summary["measure"] == "average_precision")
    ]
    table = pd.read_csv(results / "sweep.csv", dtype={"name": str})
    of_width = table[(table["variant"] == BASE) & (table["name"] == "1.1")]
    assert row["mean"].item() == pytest.approx(of_width["average_precision"].mean())
    assert f"| width 1.1 | {row['mean'].item():.3f}" in (results / "summary.md").read_text()
    assert mpl_image.imread(results / "sweep.png").std() > 0.05
    assert "data:image/png;base64," in (results / "summary.html").read_text(encoding="utf-8")


def test_a_rerun_computes_nothing(
    results: Path, detector: Detector, cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (results / "sweep.csv").read_bytes()
    monkeypatch.setattr(Detector, "infer", lambda *args, **kwargs: pytest.fail("reconstructs"))
    monkeypatch.setattr(Detector, "compare", lambda *args, **kwargs: pytest.fail("compares"))
    run_sweep(detector, cases, results, sigmas=SIGMAS, ensembles=list(ENSEMBLES), ablations=ALL)
    assert (results / "sweep.csv").read_bytes() == before


def test_failed_cases_are_told(detector: Detector, cases: list[Case], tmp_path: Path) -> None:
    broken = Case(**{**vars(cases[1]), "image": tmp_path / "gone.nii.gz"})
    told = []
    table, failed = run_sweep(
        detector, [broken, cases[2]], tmp_path / "out", sigmas=[0.5], report=lambda case, why: told.append(why)
    )
    assert set(table["case"]) == {"s2"}
    assert len(failed) == 1
    assert "no such file" in failed[0]
    assert told == [failed[0], ""]
    assert "no such file" in (tmp_path / "out" / "summary.md").read_text()


def test_unusable_requests(detector: Detector, cases: list[Case], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no test case with a drawn lesion"):
        run_sweep(detector, cases[:1], tmp_path, sigmas=[0.5])
    with pytest.raises(InputError, match="needs validation scans"):
        run_sweep(detector, cases[1:], tmp_path, sigmas=[0.5], ensembles=["learnt"])


def test_ensembles() -> None:
    similarities = torch.rand((4, 3, 3, 3), generator=torch.Generator().manual_seed(0)) * 2 - 1
    made = {name: ensemble(similarities, name, [0, 0.5, 0.5, 0]) for name in ENSEMBLES}
    anomalies = 1 - similarities
    torch.testing.assert_close(made["max"], anomalies.amax(0))
    torch.testing.assert_close(made["min"], anomalies.amin(0))
    torch.testing.assert_close(made["mean"], anomalies.mean(0))
    torch.testing.assert_close(made["learnt"], anomalies[1:3].mean(0))
    ordered = [made[name] for name in ("min", "mean", "default", "softmin", "max")]
    for lower, higher in itertools.pairwise(ordered):
        assert (lower <= higher + 1e-6).all()


def test_learnt_weights_find_the_map_that_tells() -> None:
    rng = np.random.default_rng(0)
    lesion = rng.random(5000) < 0.5
    telling = 0.3 * lesion + 0.1 * rng.random(5000)
    weights = learn_weights(np.stack([rng.random(5000), telling, 1 - telling], axis=1), lesion)
    assert sum(weights) == pytest.approx(1)
    assert weights[1] > 0.9
    assert weights[2] == 0
    assert learn_weights(np.stack([-telling, -telling], axis=1), lesion) == [0.5, 0.5]


def test_slicewise_windows_see_one_slice() -> None:
    generator = torch.Generator().manual_seed(0)
    image, other = torch.rand((2, 9, 8, 4), generator=generator)
    changed = image.clone()
    changed[:, :, 2] = changed[:, :, 2].flip(0)
    before, after = (slicewise_ssim_maps(other, volume, sigmas=[0.9, 1.5]) for volume in (image, changed))
    assert before.shape == (2, 9, 8, 4)
    torch.testing.assert_close(before[..., [0, 1, 3]], after[..., [0, 1, 3]])
    assert (before[..., 2] - after[..., 2]).abs().max() > 0.1


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0.3:0.9:0.2", [0.3, 0.5, 0.7, 0.9]), ("0.3:3.0:0.9", [0.3, 1.2, 2.1, 3.0]), ("1,0.5,1", [1, 0.5])],
)
def test_sigmas(text: str, expected: list[float]) -> None:
    assert parse_sigmas(text) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--sigmas", "3:0.3:0.2"), "neither FIRST:LAST:STEP"),
        (("--sigmas", "a"), "neither FIRST:LAST:STEP"),
        (("--sigmas", "0,1"), "neither FIRST:LAST:STEP"),
        (("--ensembles", "softmax"), "Did you mean 'softmin'?"),
        (("--ablate", "window"), "Did you mean 'windows'?"),
        (("--draws", "0"), "no positive whole number"),
    ],
)
def test_wrong_usage(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["sweep", "MODEL", "DATA", "-o", str(tmp_path / "out"), *words])
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.split())


def test_the_command(cases: list[Case], detector: Detector, tmp_path: Path) -> None:
    detector.save(tmp_path / "model")
    lines = ["subject,image,mask,seg,label,split,dataset"]
    lines += [f"{c.subject},{c.image},{c.mask},{c.lesion},1,{c.split},painted" for c in cases]
    (tmp_path / "scans.csv").write_text("\n".join(lines))
    words = ["sweep", tmp_path / "model", tmp_path / "scans.csv", "-o", tmp_path / "out", "--sigmas", "0.5,1.1"]
    done = CliRunner().invoke(app, [*map(str, words), "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert "| ensemble, learnt |" in done.stdout
    assert (tmp_path / "out" / "sweep.png").stat().st_size > 1000
