"""The benchmark: the plain pipeline gives our numbers, and what is measured is what is said."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import opensimplex
import pytest
import torch
from bench import STAGES, baseline, run_bench, table
from bench.measure import interleaved, machine_rates, peak_memory
from bench.run import apart_by, sums
from bench.stages import ENSEMBLE, MAPS, SCORING, Case
from tiny import tiny_detector

from brainuad.detector import load_model
from brainuad.errors import InputError
from brainuad.models.base import Model
from brainuad.models.noise import opensimplex_permutation, simplex_fields

CPU = torch.device("cpu")
SIZE = (32, 40, 24)
# The variances of SSIM cancel in float32, as they do in the published maps.
TOLERANCE = {"prepare": 1e-5, ENSEMBLE: 1e-3, MAPS: 2e-3, "reconstruct": 1e-5, "metrics": 1e-6}


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tiny_detector(), SIZE, tmp_path_factory.mktemp("bench"))


@pytest.mark.parametrize("name", [name for name in STAGES if name not in ("noise", "write")])
def test_the_plain_pipeline_gives_our_numbers(case: Case, name: str) -> None:
    stage = case.stage(name)
    assert stage is not None
    assert stage.comparable
    assert stage.plain is not None
    assert apart_by(stage.ours(), stage.plain()) <= TOLERANCE.get(name, 0)


def test_the_case_has_something_to_find(case: Case) -> None:
    assert case.image.shape == SIZE
    assert case.image.min() == 0
    assert case.image.max() == 1
    assert case.lesion[case.mask].sum() > 50
    stage = case.stage("metrics")
    assert stage is not None
    found = stage.ours()
    assert len(found) == 21
    assert all(np.isfinite(value) for value in found.values())
    assert 0 < found["dice"] < 1


def test_written_files_hold_the_map(case: Case) -> None:
    stage = case.stage("write")
    assert stage is not None
    assert stage.plain is not None
    stage.ours()
    stage.plain()
    ours, plain = (baseline.read(case.folder / f"{name}_anomaly.nii.gz") for name in ("ours", "plain"))
    np.testing.assert_array_equal(ours, plain)
    assert ours.any()


def test_noise_pixel_by_pixel_is_the_field_of_a_sparse_product() -> None:
    table = opensimplex_permutation(7)
    plain = baseline.noise_field((21, 16), table.tolist())
    np.testing.assert_allclose(plain, simplex_fields(table[None], (21, 16))[0], atol=1e-6)


def test_one_octave_is_that_of_the_opensimplex_package() -> None:
    table = opensimplex_permutation(7)
    noise = opensimplex.OpenSimplex(seed=7)
    plain = baseline.noise_field((12, 9), table.tolist(), octaves=1, frequency=3.7)
    expected = [[noise.noise2(y / 3.7, x / 3.7) for y in range(9)] for x in range(12)]
    np.testing.assert_allclose(plain, expected, atol=1e-6)


def test_all_noise_that_a_reconstruction_draws_is_timed(case: Case) -> None:
    stage = case.stage("noise")
    assert stage is not None
    assert stage.plain is not None
    assert stage.ours().shape == (1, 24, 1, 32, 40)
    (field,) = stage.plain()
    assert field.shape == (24, 32, 40)
    assert (field == field[0]).all()  # as published: one field for all slices


def test_functions_take_turns_and_the_median_counts() -> None:
    calls: list[str] = []
    waits = iter((0.05, 0.0, 0.0))
    functions = {"slow once": lambda: (calls.append("a"), time.sleep(next(waits))), "idle": lambda: calls.append("b")}
    seconds = interleaved(functions, 3, CPU)
    assert "".join(calls) == "abbaab"
    assert seconds["slow once"] < 0.04


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system does not tell")
def test_peak_memory_sees_what_is_freed_again() -> None:
    def spend() -> int:
        return int(torch.ones(40 * 2**18).add(1).sum())  # two times 40 MiB

    result, mib = peak_memory(spend, CPU)
    assert result == 2 * 40 * 2**18
    assert mib is not None
    assert 70 < mib < 110


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system does not tell")
def test_the_ensemble_takes_no_more_than_twelve_volumes(tmp_path: Path) -> None:
    case = Case(load_model("lite-t1", "cpu"), (96, 96, 50), tmp_path)
    assert len(case.sigmas) == 8
    stage = case.stage(ENSEMBLE)
    assert stage is not None
    stage.ours()
    peaks = [peak_memory(stage.ours, CPU)[1] for _ in range(3)]
    # what else the process does meanwhile adds to a peak, and nothing takes from it
    assert min(mib for mib in peaks if mib is not None) * 2**20 / (4 * case.voxels) < 12


def test_apart_by() -> None:
    assert apart_by({"a": [1.0, float("nan")]}, {"a": [1.5, float("nan")]}) == 0.5
    assert apart_by(torch.ones(2), np.ones(2)) == 0
    assert apart_by(np.ones(2), np.ones(3)) == float("inf")
    assert apart_by({"a": 1}, {"b": 1}) == float("inf")
    assert apart_by([1.0], [float("nan")]) == float("inf")
    assert apart_by([1.0], [1.0, 2.0]) == float("inf")


def test_rates_are_those_of_a_computer() -> None:
    rates = machine_rates(CPU)
    assert min(rates["float32_gflop_per_second"], rates["bfloat16_gflop_per_second"]) > 0.5
    assert rates["gb_per_second"] > 0.2


def test_sums_and_shares() -> None:
    bench = run_bench(tiny_detector(), [SIZE], [MAPS, *SCORING], repeats=1, threads=1)
    timings = bench.sizes["32x40x24"]
    assert [timing.stage for timing in timings] == [ENSEMBLE, MAPS, *SCORING[1:]]
    outer = [timing for timing in timings if timing.stage != MAPS]
    assert sum(timing.share for timing in outer) == pytest.approx(1)
    found = sums(timings)
    ours = sum(timing.seconds for timing in outer)
    plain = sum(timing.plain_seconds or 0 for timing in outer)
    assert found["all stages"]["seconds"] == pytest.approx(ours)
    assert found["SSIM ensemble to metrics"]["ratio"] == pytest.approx(plain / ours)
    maps = timings[1]
    assert set(maps.others) == {"scikit-image", "torchmetrics"}
    assert maps.floor_seconds > 0
    text = table(bench)
    assert "  of it SSIM maps" in text
    assert "by scikit-image" in text


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    bench = run_bench(tiny_detector(), [SIZE], ["erode"], repeats=1, threads=before + 1)
    assert bench.machine["threads"] == before + 1
    assert torch.get_num_threads() == before


def test_a_model_without_noise_has_no_such_stage() -> None:
    detector = tiny_detector()

    class Copy(Model):
        def reconstruct(self, images: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
            return images

    detector.model = Copy()
    detector.model.register_parameter("weight", torch.nn.Parameter(torch.zeros(1)))
    (first, second) = run_bench(detector, [SIZE], ["noise", "reconstruct", "erode"], repeats=1).sizes["32x40x24"]
    assert (first.stage, second.stage) == ("reconstruct", "erode")
    assert first.ratio is None


@pytest.mark.parametrize(
    ("size", "stages", "message"), [((8, 40, 24), ["erode"], "too small"), (SIZE, ["x"], "unknown")]
)
def test_what_cannot_be_measured(size: tuple[int, int, int], stages: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run_bench(tiny_detector(), [size], stages, repeats=1)


@pytest.mark.long
def test_command(tmp_path: Path) -> None:
    tiny_detector().save(tmp_path / "model")
    script = Path(__file__).parents[2] / "benchmarks" / "baseline.py"
    words = ["32x40x24", "--model", str(tmp_path / "model"), "--threads", "1", "--repeats", "1"]
    words += ["--stages", "noise", "reconstruct", "write", "-o", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, script, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    written = (tmp_path / "out" / "32x40x24_1threads.txt").read_text()
    assert written.count("\n") >= 6
    assert written in done.stdout
    found = json.loads((tmp_path / "out" / "32x40x24_1threads.json").read_text())
    stages = found["sizes"]["32x40x24"]["stages"]
    assert [stage["stage"] for stage in stages] == ["noise", "reconstruct", "write"]
    assert all(stage["seconds"] > 0 and stage["plain_seconds"] > 0 for stage in stages)
    assert found["machine"]["versions"]["torch"] == torch.__version__
