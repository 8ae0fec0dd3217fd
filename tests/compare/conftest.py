import pytest
from run_tables import rows, write_run


@pytest.fixture
def folders(tmp_path):
    return [
        write_run(tmp_path / "one", rows(seed=0)),
        write_run(tmp_path / "two", rows(seed=1, gain=0.05)),
        write_run(tmp_path / "three", rows(seed=2, gain=-0.02)),
    ]
