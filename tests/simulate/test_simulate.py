import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from brainuad.cli import app
from brainuad.config import DataConfig
from brainuad.data.cohort import manifest_cases
from brainuad.data.leaks import find_leaks
from brainuad.data.loading import load_case
from brainuad.data.volume import Volume
from brainuad.simulate import KINDS, Simulation
from brainuad.simulate.subject import simulate_subject

TESTS = Path(__file__).parents[1]
DEMO = TESTS.parent / "src/brainuad/assets/demo"
LABELS = TESTS / "files/ixi067_labels_2mm.nii.gz"
SPLITS = {"IXI067": "test", "IXI001": "val", "IXI002": "train"}


@pytest.fixture(scope="module")
def healthy(tmp_path_factory) -> Path:
    """One labelled scan as if of three subjects, in a manifest."""
    folder = tmp_path_factory.mktemp("healthy")
    lines = ["subject,image,mask,seg,label,split,dataset,age"]
    for subject, split in SPLITS.items():
        for kind in ("t1", "mask"):
            shutil.copyfile(DEMO / f"IXI067_{kind}.nii.gz", folder / f"{subject}_{kind}.nii.gz")
        shutil.copyfile(LABELS, folder / f"{subject}_labels.nii.gz")
        lines.append(f"{subject},{subject}_t1.nii.gz,{subject}_mask.nii.gz,,0,{split},IXI,24.7")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder / "manifest.csv"


def simulate(*arguments: object):
    return CliRunner().invoke(app, ["simulate", *map(str, arguments)])


@pytest.fixture(scope="module")
def cohort(healthy, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    result = simulate(healthy, "-o", folder, "--seed", 3)
    assert result.exit_code == 0, result.output
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.nii.gz"))}


def test_every_subject_gets_every_kind_and_stays_in_its_split(cohort):
    table = pd.read_csv(cohort / "manifest.csv")
    assert set(table["subject"]) == {"IXI067", "IXI001"}  # training scans are real where they can be
    assert (table["split"] == table["subject"].map(SPLITS)).all()
    assert (table.groupby("subject")["kind"].apply(list).apply(len) == 5).all()
    healthy = table["kind"] == "healthy"
    assert set(table.loc[healthy, "dataset"]) == {"IXI healthy"}
    assert set(table.loc[~healthy, "dataset"]) == {f"simulated {kind}" for kind in KINDS}
    assert (table["label"] == (~healthy).astype(int)).all()
    assert (table.loc[~healthy, "volume_ml"] > 0.1).all()
    assert table.loc[~healthy, "contrast"].between(0.03, 1).all()
    assert not find_leaks(manifest_cases(cohort / "manifest.csv"))


def test_the_manifest_loads_and_says_what_the_files_hold(cohort):
    table = pd.read_csv(cohort / "manifest.csv").set_index(["subject", "kind"])
    cases = manifest_cases(cohort / "manifest.csv")
    reference = Volume.load(cohort / "IXI067_t1.nii.gz").array
    original = Volume.load(DEMO / "IXI067_t1.nii.gz").array
    assert np.corrcoef(reference.ravel(), original.ravel())[0, 1] > 0.999
    for case in cases:
        if case.lesion is None:
            continue
        truth, image = Volume.load(case.lesion), Volume.load(case.image)
        row = table.loc[case.subject, case.dataset.removeprefix("simulated ")]
        assert (truth.array > 0).sum() * np.prod(truth.spacing) / 1000 == pytest.approx(row["volume_ml"], abs=1e-3)
        if case.subject == "IXI067":
            inside = truth.array > 0
            assert image.array[inside].mean() < reference[inside].mean()
            if "tumour" not in case.dataset:  # which also moves what it does not touch
                changed = image.array != reference
                assert changed[inside].mean() > 0.8
                # Partial volume at the border is outside the truth, and weak.
                change = np.abs(image.array - reference)
                assert change[inside].sum() > 0.6 * change.sum()
    prepared = load_case(cases[-1], DataConfig(imageDim=(160, 192, 144), affine="used", rescaleFactor=2.0))
    assert prepared.lesion is not None
    assert prepared.lesion.any()


def test_parameters_are_written(cohort):
    record = json.loads((cohort / "simulation.json").read_text())
    assert record["settings"] == {
        "kinds": list(KINDS), "modality": "t1", "seed": 3, "contrast": 1.0, "size": 1.0,
    }  # fmt: skip
    outlines = [record["subjects"][subject]["stroke"]["outline"] for subject in ("IXI067", "IXI001")]
    assert len(set(outlines)) == 2
    assert record["subjects"]["IXI067"]["tumour"]["least_jacobian"] > 0


def test_same_seed_same_bytes_whatever_else_is_asked_for(cohort, healthy, tmp_path):
    assert simulate(healthy, "-o", tmp_path, "--seed", 3, "--kind", "ms", "--split", "test").exit_code == 0
    again = files_of(tmp_path)
    assert set(again) == {
        "IXI067_t1.nii.gz", "IXI067_mask.nii.gz", "IXI067_ms_t1.nii.gz", "IXI067_ms_seg.nii.gz",
    }  # fmt: skip
    before = files_of(cohort)
    assert all(before[name] == content for name, content in again.items())


def test_a_rerun_skips_and_a_lost_file_is_made_again(healthy, tmp_path):
    case = next(case for case in manifest_cases(healthy) if case.subject == "IXI067")
    settings = Simulation(("ms",))

    def status(wanted: Simulation) -> str:
        summary, record = simulate_subject(case, tmp_path, wanted, [])
        assert [row["kind"] for row in record["rows"]] == ["healthy", "ms"]
        return str(summary["status"])

    assert status(settings) == "simulated"
    first = files_of(tmp_path)
    assert status(settings) == "skipped"
    (tmp_path / "IXI067_ms_seg.nii.gz").unlink()
    assert status(settings) == "simulated"
    assert files_of(tmp_path) == first
    assert status(replace(settings, seed=1)) == "simulated"
    assert files_of(tmp_path) != first


def test_t2_is_simulated_for_training_too(healthy, tmp_path):
    result = simulate(healthy, "-o", tmp_path, "--modality", "t2", "--kind", "ms", "--split", "train,test")
    assert result.exit_code == 0, result.output
    table = pd.read_csv(tmp_path / "manifest.csv")
    assert list(table.loc[table["subject"] == "IXI002", "kind"]) == ["healthy"]
    assert set(table["dataset"]) == {"simulated healthy T2", "simulated ms in simulated T2"}
    image, sick, truth = (Volume.load(tmp_path / f"IXI067{part}.nii.gz").array for part in ("_t2", "_ms_t2", "_ms_seg"))
    inside = truth > 0
    assert sick[inside].mean() > image[inside].mean()


def test_what_cannot_be_done_is_said_in_one_line(healthy, tmp_path):
    bare = tmp_path / "bare.csv"
    rows = healthy.read_text().replace("IXI067_t1", "IXI067_copy").splitlines()
    bare.write_text("\n".join(rows) + "\n")
    for name in ("IXI067_copy", "IXI067_mask", "IXI001_t1", "IXI001_mask", "IXI001_labels"):
        source = "IXI067_t1" if name == "IXI067_copy" else name
        shutil.copyfile(healthy.parent / f"{source}.nii.gz", tmp_path / f"{name}.nii.gz")
    result = simulate(bare, "-o", tmp_path / "out", "--kind", "ms", "--json")
    assert result.exit_code == 3
    status = {row["subject"]: row for row in json.loads(result.stdout)}
    assert status["IXI001"]["status"] == "simulated"
    assert "labels" in status["IXI067"]["message"]
    assert set(pd.read_csv(tmp_path / "out/manifest.csv")["subject"]) == {"IXI001"}

    (tmp_path / "few").mkdir()
    result = simulate(healthy, "-o", tmp_path / "none", "--outlines", tmp_path / "few")
    assert result.exit_code == 1
    assert "holds 0 outlines" in result.output
    for arguments in (("--kind", "strok"), ("--size", "0"), ("--split", "testing")):
        assert simulate(healthy, "-o", tmp_path / "none", *arguments).exit_code == 2
    plain = re.sub(r"\s+", " ", simulate(healthy, "-o", tmp_path / "none", "--kind", "strok").output)
    assert "stroke" in plain


def test_nothing_that_was_given_is_written_over(healthy, tmp_path):
    for path in healthy.parent.iterdir():
        shutil.copyfile(path, tmp_path / path.name)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    result = simulate(tmp_path / "manifest.csv", "-o", tmp_path, "--kind", "ms")
    assert result.exit_code == 1
    assert "manifest.csv: would be written over. Choose another output folder" in result.stderr
    (tmp_path / "manifest.csv").rename(tmp_path / "list.csv")
    result = simulate(tmp_path / "list.csv", "-o", tmp_path / "sub" / "..", "--kind", "ms")
    assert result.exit_code == 1
    assert "IXI001_t1.nii.gz: lies in the output folder" in result.stderr
    (tmp_path / "list.csv").rename(tmp_path / "manifest.csv")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("S", "S", "would have the files of"),
        ("S", "s", "would have the files of"),
        ("S", "S_ms", "S_ms_t1.nii.gz"),
        ("S", "../out", "subject '../out' cannot be a file name"),
    ],
)
def test_every_scan_has_files_of_its_own(healthy, tmp_path, first, second, message):
    text = healthy.read_text().replace("IXI067,", f"{first},").replace("IXI001,", f"{second},")
    (healthy.parent / "named.csv").write_text(text)
    result = simulate(healthy.parent / "named.csv", "-o", tmp_path / "deep" / "sim", "--kind", "ms")
    assert result.exit_code == 1
    assert message in result.stderr
    assert not list(tmp_path.rglob("*.nii.gz"))


def test_a_subject_that_fails_leaves_no_files(healthy, tmp_path):
    image = Volume.load(DEMO / "IXI067_t1.nii.gz")
    away = image.affine.copy()
    away[:3, 3] += 300  # as a raw scan lies in its scanner
    for name, source in (("t1", DEMO / "IXI067_t1.nii.gz"), ("mask", DEMO / "IXI067_mask.nii.gz"), ("labels", LABELS)):
        volume = Volume.load(source)
        dtype = np.uint8 if name != "t1" else np.float32
        Volume.from_array(volume.array, away).save(tmp_path / f"IXI067_{name}.nii.gz", dtype)
    rows = healthy.read_text().splitlines()
    (tmp_path / "away.csv").write_text("\n".join(row for row in rows if "IXI0" not in row or "IXI067" in row) + "\n")
    result = simulate(tmp_path / "away.csv", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "from the atlas brain" in result.output
    assert not list((tmp_path / "out").glob("*.nii.gz"))


def test_a_lesion_can_be_no_healthy_scan(healthy, tmp_path):
    text = healthy.read_text().replace("_mask.nii.gz,,0,", "_mask.nii.gz,IXI001_mask.nii.gz,0,")
    (healthy.parent / "ill.csv").write_text(text)
    result = simulate(healthy.parent / "ill.csv", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "no healthy scan was found" in result.stderr
