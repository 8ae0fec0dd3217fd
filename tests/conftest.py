"""Settings of all tests."""

import getpass
import logging
import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

# The suite runs in several processes; threads of each would only get in the others' way. Set before torch is imported,
# unless the environment asks for another number.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("MPLBACKEND", "Agg")
# What was compiled for a processor of other kernels does not fit the headers compiled for this one, but is found by the
# same name: it then writes beyond its memory.
if capability := os.environ.get("ATEN_CPU_CAPABILITY"):
    folder = Path(tempfile.gettempdir()) / f"torchinductor-{getpass.getuser()}-{capability}"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))

import torch  # noqa: E402
from paper_layout import FILES, build_tree  # noqa: E402

from brainuad.data.volume import Volume  # noqa: E402

DEMO = Path(__file__).parents[1] / "src/brainuad/assets/demo"

THREADS = torch.get_num_threads()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slowest files first: processes that take one file after another then end together."""
    seconds: defaultdict[Path, int] = defaultdict(int)
    for item in items:
        if marker := item.get_closest_marker("slow"):
            seconds[item.path] += marker.kwargs.get("seconds", 10)
    items.sort(key=lambda item: -seconds[item.path])


@pytest.fixture(autouse=True, scope="module")
def _same_threads() -> Iterator[None]:
    """Sums in another order, and so other bits, would come of another number of threads."""
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(THREADS)


@pytest.fixture(autouse=True)
def _logging_restored() -> Iterator[None]:
    """A command sets the package's level, and sends messages to a stderr that is gone after its test.

    So does one in a fixture of a whole file, which runs before this.
    """
    root, handlers = logging.getLogger(), logging.getLogger().handlers[:]
    package = logging.getLogger("brainuad")
    package.setLevel(logging.NOTSET)
    yield
    root.handlers[:] = handlers
    package.setLevel(logging.NOTSET)


@pytest.fixture
def paper_tree(tmp_path: Path) -> Callable[..., Path]:
    """Builder of a small ``DATA_DIR`` of real files; see ``build_tree``."""
    return partial(build_tree, tmp_path / "data_dir")


@pytest.fixture(scope="session")
def labelled_brain() -> tuple[Volume, Volume, Volume]:
    """A healthy T1 scan in atlas space at 2 mm, its brain mask and its parcellation."""
    names = DEMO / "IXI067_t1.nii.gz", DEMO / "IXI067_mask.nii.gz", FILES / "ixi067_labels_2mm.nii.gz"
    image, mask, labels = (Volume.load(name) for name in names)
    return image, mask, labels
