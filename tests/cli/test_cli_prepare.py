"""``brainuad prepare`` as a user types it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from commands import DAMAGES, FILES, run


def raw_manifest(folder: Path, names: list[str]) -> Path:
    """A manifest of raw scans: each damage by its name, and "sound"."""
    rows = ["subject,image,mask,dataset,split"]
    for name in names:
        paths = {kind: folder / f"{name}_{kind}.nii.gz" for kind in ("image", "mask")}
        for kind, path in paths.items():
            shutil.copyfile(FILES / f"ixi013_{'t1' if kind == 'image' else kind}_4mm.nii.gz", path)
        if name in DAMAGES:
            DAMAGES[name][1](paths[DAMAGES[name][0]])
        rows.append(f"{name},{paths['image'].name},{paths['mask'].name},clinic,test")
    path = folder / "scans.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def test_prepare_dry_run_writes_nothing(tmp_path: Path) -> None:
    manifest = raw_manifest(tmp_path, ["sound", "missing"])
    words = ("prepare", manifest, "-o", tmp_path / "out", "--dataset", "manifest", "--dry-run")
    lines = run(*words).stdout.splitlines()
    assert lines[0].split("\t") == ["subject", "dataset", "split", "image", "mask", "lesion"]
    assert lines[1].split("\t")[:4] == ["sound", "clinic", "test", str(tmp_path / "sound_image.nii.gz")]
    assert [row["subject"] for row in json.loads(run(*words, "--json").stdout)] == ["sound", "missing"]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.long
def test_prepare_goes_on_after_damaged_scans(tmp_path: Path) -> None:
    names = ["sound", *DAMAGES]
    manifest = raw_manifest(tmp_path, names)
    words = ("prepare", manifest, "-o", tmp_path / "out", "--dataset", "manifest", "--spacing", 2)
    result = run(*words, "--json", code=3)
    rows = {row["subject"]: row for row in json.loads(result.stdout)}
    assert set(rows) == set(names)
    assert rows.pop("sound")["status"] == "prepared"
    for name, row in rows.items():
        assert row["status"] == "failed", name
        assert f"{name}_" in row["message"]
        assert f"failed: {name}: " in result.stderr
    assert (tmp_path / "out/Data/Test/clinic/t1/sound_t1.nii.gz").is_file()
    for name in DAMAGES:
        (tmp_path / f"{name}_image.nii.gz").unlink() if name not in ("missing", "folder") else None
    shown = run(*words, code=3).stdout
    assert shown.startswith(f"0 prepared, 1 skipped, {len(DAMAGES)} failed\n")
    (tmp_path / "sound_image.nii.gz").unlink()
    run(*words, code=1)


def test_prepare_writes_over_no_table_of_the_user(tmp_path: Path) -> None:
    own = raw_manifest(tmp_path, ["sound"]).rename(tmp_path / "manifest.csv")
    before = own.read_bytes()
    words = ("--dataset", "manifest", "--spacing", 2)
    result = run("prepare", own, "-o", tmp_path / "new" / "..", *words, code=1)
    assert "manifest.csv: would be written over" in result.stderr
    other = tmp_path / "scans.csv"
    other.write_bytes(before)
    for header, fault in (
        ("subject,image,mask,site,dataset,split", "lose its columns site"),
        ("subject,image,mask,seg,label,split", "it lacks the columns dataset"),
    ):
        own.write_text(header + "\nA,a.nii,m.nii,,0,test\n")
        before = own.read_bytes()
        result = run("prepare", other, "-o", tmp_path, *words, code=1)
        assert f"manifest.csv: would be written anew, and {fault}" in result.stderr.replace(
            "is not of preparation: ", ""
        )
        assert own.read_bytes() == before
    assert not (tmp_path / "Data").exists()


@pytest.mark.slow
@pytest.mark.long
def test_a_brain_mask_is_of_one_modality(tmp_path: Path) -> None:
    """A T2 alone would write over the mask of the T1 that is there; other subjects go on."""
    words = ("-o", tmp_path / "out", "--dataset", "manifest", "--spacing", 2)
    run("prepare", raw_manifest(tmp_path, ["sound"]), *words)
    before = {path: path.read_bytes() for path in sorted((tmp_path / "out" / "Data/Test").rglob("*.gz"))}
    (tmp_path / "t2").mkdir()
    both = raw_manifest(tmp_path / "t2", ["sound", "further"])
    result = run("prepare", both, *words, "--modality", "t2", "--json", code=3)
    status = {row["subject"]: row["status"] for row in json.loads(result.stdout)}
    assert status == {"sound": "failed", "further": "prepared"}
    assert "sound_t1.nii.gz: is there, and " in result.stderr
    assert "together, or into folders of their own" in result.stderr
    assert {path: path.read_bytes() for path in before} == before
    assert "sound_t1" in (tmp_path / "out" / "manifest.csv").read_text(), "what was prepared stays listed"
    assert "further_t2" in (tmp_path / "out" / "manifest_t2.csv").read_text()


def test_prepare_writes_over_no_scan(tmp_path: Path) -> None:
    scans = tmp_path / "Data" / "Test" / "clinic"
    for kind in ("t1", "mask"):
        (scans / kind).mkdir(parents=True)
        shutil.copyfile(FILES / f"ixi013_{kind}_4mm.nii.gz", scans / kind / f"A_{kind}.nii.gz")
    before = {path: path.read_bytes() for path in scans.rglob("*.gz")}
    row = "A,Data/Test/clinic/t1/A_t1.nii.gz,Data/Test/clinic/mask/A_mask.nii.gz,clinic,test"
    (tmp_path / "scans.csv").write_text(f"subject,image,mask,dataset,split\n{row}\n")
    words = ("prepare", tmp_path / "scans.csv", "-o", tmp_path, "--dataset", "manifest", "--spacing", 2)
    assert "A_t1.nii.gz: would be written over" in run(*words, code=1).stderr
    assert {path: path.read_bytes() for path in before} == before
