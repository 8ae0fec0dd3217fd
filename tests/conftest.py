"""Settings of all tests."""

import os

# The suite runs in several processes; threads of each would only get in the others' way. Set before torch is imported.
for name in (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
):
    os.environ.setdefault(name, "1")
os.environ.setdefault("MPLBACKEND", "Agg")
