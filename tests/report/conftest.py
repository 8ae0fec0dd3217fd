from pathlib import Path

import pytest
from scored_folder import EVIL, SCRIPT, patient, write_run, write_scan


@pytest.fixture
def scored(tmp_path) -> Path:
    """One scored scan with an annotation."""
    folder = tmp_path / "out"
    write_run(folder, [write_scan(folder, "patient19_t1", *patient())])
    return folder


@pytest.fixture(scope="session")
def cohort(tmp_path_factory) -> Path:
    """Three scored scans, among them names and warnings that want to be markup, and one that failed."""
    folder = tmp_path_factory.mktemp("run") / "out"
    volumes, affine = patient()
    healthy = {name: volume for name, volume in volumes.items() if name != "lesion"}
    healthy["anomaly"] = volumes["anomaly"] * 0.5
    sidecars = [
        write_scan(folder, "patient19_t1", volumes, affine, warnings=["brain volume out of range"]),
        write_scan(folder, EVIL, healthy, affine, warnings=[SCRIPT]),
        write_scan(folder, "uncalibrated", healthy, affine, calibration=None),
    ]
    write_run(folder, sidecars, {"broken_t1": f"{SCRIPT} is truncated"})
    return folder
