"""BIDS data sets are read by their names, and results are a derivative that the official validator accepts."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from brainuad.errors import InputError
from brainuad.inputs.bids import bids_images, write_dataset_description
from brainuad.inputs.scans import find_scans, output_paths

SCAN = Path(__file__).parent.parent / "files" / "ixi013_t1_4mm.nii.gz"
IMAGES = (
    "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz",
    "sub-01/ses-1/anat/sub-01_ses-1_ce-gad_T1w.nii.gz",
    "sub-01/ses-1/anat/sub-01_ses-1_T2w.nii.gz",
    "sub-01/ses-2/anat/sub-01_ses-2_acq-mprage_run-1_T1w.nii.gz",
    "sub-01/ses-2/anat/sub-01_ses-2_acq-mprage_run-2_T1w.nii.gz",
    "sub-02/anat/sub-02_T1w.nii",
    "sub-02/anat/sub-02_FLAIR.nii.gz",
    "sub-02/func/sub-02_task-rest_bold.nii.gz",
    "derivatives/other/sub-02/anat/sub-02_T1w.nii.gz",
    "sourcedata/sub-02/anat/sub-02_T1w.nii.gz",
)


def describe(root: Path, **fields: object) -> None:
    root.mkdir(parents=True, exist_ok=True)
    description = {"Name": "test", "BIDSVersion": "1.10.0"} | fields
    (root / "dataset_description.json").write_text(json.dumps(description))


@pytest.fixture
def dataset(tmp_path) -> Path:
    root = tmp_path / "dataset"
    describe(root)
    for name in IMAGES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(SCAN, root / name)
    return root


def scans_of(root: Path, modality: str = "t1", **options: object) -> list[str]:
    return [scan.name for scan in find_scans([root], modality=modality, output=root.parent / "out", **options)]


def test_scans_are_taken_by_modality_participant_and_session(dataset):
    everything = [
        "sub-01_ses-1_T1w",
        "sub-01_ses-2_acq-mprage_run-1_T1w",
        "sub-01_ses-2_acq-mprage_run-2_T1w",
        "sub-02_T1w",
    ]
    assert scans_of(dataset) == everything
    assert scans_of(dataset, "t2") == ["sub-01_ses-1_T2w"]
    assert scans_of(dataset, participants=["02"]) == ["sub-02_T1w"]
    assert scans_of(dataset, participants=["sub-01"], sessions=["2"]) == everything[1:3]
    assert scans_of(dataset, sessions=["ses-1"]) == everything[:1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"participants": ["01", "07"]}, r"has no sub-07 \(--participant-label\)\. There are: sub-01, sub-02$"),
        ({"sessions": ["3"]}, r"has no ses-3 \(--session\)\. There are: ses-1, ses-2$"),
        ({"participants": ["02"], "sessions": ["1"]}, r"holds no T1w image: looked for sub-\*/\[ses-\*/\]anat"),
    ],
)
def test_what_is_not_there_is_named(dataset, options, message):
    with pytest.raises(InputError, match=message):
        scans_of(dataset, **options)


def test_labels_need_a_data_set(tmp_path):
    shutil.copy(SCAN, tmp_path)
    with pytest.raises(InputError, match="is no BIDS data set"):
        find_scans([tmp_path], modality="t1", output=tmp_path / "out", participants=["01"])


def test_files_whose_names_contradict_their_folders_are_left_out_with_a_warning(dataset, caplog):
    anat = dataset / "sub-02" / "anat"
    for name in ("sub-03_T1w.nii.gz", "sub-02_ses-1_T1w.nii.gz", "sub-02_acq_T1w.nii.gz", "._sub-02_T1w.nii.gz"):
        shutil.copy(SCAN, anat / name)
    assert [image.name for image in bids_images(dataset, "t1", participants=["02"])] == ["sub-02_T1w.nii"]
    assert caplog.text.count("left out") == 3


def test_one_image_in_two_formats_or_data_sets_is_refused(dataset, tmp_path):
    shutil.copytree(dataset, tmp_path / "copy")
    with pytest.raises(InputError, match="would be named 'sub-01_ses-1_T1w' in the results, as "):
        find_scans([dataset, tmp_path / "copy"], modality="t1", output=tmp_path / "out")
    shutil.copy(SCAN, dataset / "sub-02" / "anat" / "sub-02_T1w.nii.gz")
    with pytest.raises(InputError, match="would be named 'sub-02_T1w'"):
        scans_of(dataset)


def test_results_belong_among_the_derivatives(dataset):
    with pytest.raises(InputError, match=r"Choose .*derivatives/brainuad"):
        find_scans([dataset], modality="t1", output=dataset / "results")
    assert len(find_scans([dataset], modality="t1", output=dataset / "derivatives" / "brainuad")) == 4


def test_a_data_set_that_others_derived_is_a_folder_and_our_own_is_refused(dataset, tmp_path):
    describe(dataset, DatasetType="derivative", GeneratedBy=[{"Name": "fMRIPrep"}])
    (scan,) = find_scans([dataset / "sub-02"], modality="t1", output=tmp_path / "out")
    assert {scan.kind for scan in find_scans([dataset], modality="t1", output=tmp_path / "out")} == {"nifti"}
    assert (scan.kind, scan.name, scan.folder) == ("nifti", "sub-02_T1w", "")
    describe(dataset, DatasetType="derivative", GeneratedBy=[{"Name": "brainuad"}])
    with pytest.raises(InputError, match="holds results of brainuad, not scans"):
        scans_of(dataset)


@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000, '{"GeneratedBy": [1, {"Name": 3}]}', "\udcff"])
def test_a_damaged_description_stops_nothing(dataset, content):
    (dataset / "dataset_description.json").write_bytes(content.encode(errors="surrogateescape"))
    assert len(scans_of(dataset)) == 4


def test_outputs_are_a_derivative_that_the_validator_accepts(dataset):
    output = dataset / "derivatives" / "brainuad"
    scans = find_scans([dataset], modality="t1", output=output)
    write_dataset_description(output, dataset, "t1")
    for scan in scans:
        for path in output_paths(scan).values():
            (output / path).parent.mkdir(parents=True, exist_ok=True)
            if path.endswith(".nii.gz"):
                shutil.copy(SCAN, output / path)
            else:
                (output / path).write_text("{}")
                (output / path).with_suffix(".html").write_text("a page of its own in a large report")
    for name in ("scores.csv", "findings.csv", "report.html", "run.json"):
        (output / name).write_text("{}")
    assert output_paths(scans[1]) == {
        kind: f"sub-01/ses-2/anat/sub-01_ses-2_acq-mprage_run-1_{end}"
        for kind, end in {
            "anomaly": "desc-anomaly_T1w.nii.gz",
            "lesions": "desc-lesions_dseg.nii.gz",
            "reconstruction": "desc-reconstruction_T1w.nii.gz",
            "brain": "desc-brain_mask.nii.gz",
            "sidecar": "desc-anomaly_T1w.json",
            "montage": "desc-anomaly_T1w.png",
        }.items()
    }
    errors, files = validate(output)
    assert (errors, files) == ([], 4 * 5 + 1 + 4)  # what .bidsignore names is not counted
    (output / "sub-02" / "anat" / "sub-02_anomaly.nii.gz").write_bytes(SCAN.read_bytes())
    assert "NOT_INCLUDED" in validate(output)[0]  # the validator does look

    write_dataset_description(output, dataset, "t1")  # again, as a run that is resumed does
    with pytest.raises(InputError, match="is a BIDS data set already"):
        write_dataset_description(dataset, dataset, "t1")


def validate(folder: Path) -> tuple[list[str], int]:
    """Return the errors of the official validator and the number of files it saw."""
    validator = Path(sys.executable).parent / "bids-validator-deno"
    done = subprocess.run([validator, folder, "--json"], capture_output=True, text=True, timeout=120, check=False)
    found = json.loads(done.stdout)
    errors = [issue["code"] for issue in found["issues"]["issues"] if issue["severity"] == "error"]
    return errors, found["summary"]["totalFiles"]


def test_a_description_with_a_byte_order_mark_is_read(dataset):
    path = dataset / "dataset_description.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert "sub-02_T1w" in scans_of(dataset)
