"""How long each stage of a case takes, beside a plain implementation of the published pipeline in the same run."""

from bench.run import Bench, run_bench, table
from bench.stages import STAGES

__all__ = ["STAGES", "Bench", "run_bench", "table"]
