"""Compare evaluations: paired differences within subjects, with intervals and p-values."""

from brainuad.compare.differences import Comparison, Comparisons, compare_runs
from brainuad.compare.output import as_table, write_comparisons
from brainuad.compare.runs import Run, read_runs

__all__ = ["Comparison", "Comparisons", "Run", "as_table", "compare_runs", "read_runs", "write_comparisons"]
