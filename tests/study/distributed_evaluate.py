"""The command ``evaluate``, whose last process kills itself: what ``test_distributed_evaluate`` starts.

torchrun --nproc-per-node 2 tests/study/distributed_evaluate.py CASES_BEFORE_DEATH MODEL DATA_DIR -o OUT ...
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any
from unittest.mock import patch

from brainuad.cli import app
from brainuad.study import Scorer


def main() -> None:
    """Evaluate; the last process dies when it has scored so many cases."""
    left, last = int(sys.argv[1]), os.environ["RANK"] == "1"
    original = Scorer.score

    def score(self: Scorer, case: Any, names: Any) -> Any:
        nonlocal left
        found = original(self, case, names)
        if last:
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
        return found

    with patch.object(Scorer, "score", score):
        app(["evaluate", *sys.argv[2:]])


if __name__ == "__main__":
    main()
