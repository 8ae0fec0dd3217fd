"""How long each stage of a case takes, beside a plain implementation of the published pipeline in the same run."""

from brainuad.bench.run import Bench, run_bench, table
from brainuad.bench.stages import STAGES

__all__ = ["STAGES", "Bench", "run_bench", "table"]
