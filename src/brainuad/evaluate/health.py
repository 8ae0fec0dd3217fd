"""The statistics of healthy scans that scores relative to health compare with, learnt once and shared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from brainuad.data.cohort import Case
from brainuad.data.leaks import People, people, scans_of_others
from brainuad.errors import InputError
from brainuad.evaluate.progress import key_of
from brainuad.evaluate.ranks import Ranks
from brainuad.evaluate.scorer import CASE_ERRORS, MIN_OTHERS, Scorer
from brainuad.scoring.atlas import HealthyStatistics, base_of

FILE = "health.safetensors"


class Health:
    """What a scorer knows of health, on disk too.

    Args:
        scorer: Learns it.
        cases: Healthy validation scans.
        scores: All scores; those that are not relative to health need none of this.
        key: Changes with whatever could change a score of a scan.
        output: Folder of the results.
    """

    def __init__(
        self, scorer: Scorer, cases: Sequence[Case], scores: Sequence[str], key: str, output: Path
    ) -> None:
        self.scorer, self.cases, self.file = scorer, list(cases), output / FILE
        self.relative = [name for name in scores if base_of(name) is not None]
        carried = scorer.detector.health.fingerprint if scorer.detector.health else ""
        scans = [(case.dataset, case.subject, scorer.load.content(case)) for case in self.cases]
        self.key = key_of(key, scans, people(self.cases), carried)
        self._people = People(self.cases)

    def key_for(self, case: Case) -> str:
        """Return a key that changes with whatever could change what a case is compared with."""
        return key_of(self.key, self._people.own(case))

    def know(self, names: Sequence[str]) -> None:
        """Have the statistics ready if any of ``names`` needs them.

        Raises:
            InputError: Too few scans can be used, and the model carries none.
        """
        scorer = self.scorer
        if scorer.statistics is not None or not set(self.relative) & set(names):
            return
        carried = scorer.detector.health is not None  # then the model's own will do
        if (carried and scans_of_others(self.cases) < MIN_OTHERS) or self.take_up():
            return
        scorer.learn_health(self.cases, self.relative)
        if scorer.statistics is None:
            if carried:
                return
            enough = f"to compare each with {MIN_OTHERS} of other people"
            fault = f"of {len(self.cases)} healthy validation scans too few could be used {enough}"
            raise InputError(", ".join(self.relative), fault, "Look at these scans, or choose other scores")
        scans = [self.cases.index(case) for case in scorer.healthy]
        scorer.statistics.save(self.file, json.dumps({"key": self.key, "scans": scans}))

    def take_up(self) -> bool:
        """Take the statistics that an earlier run, or the first rank, has left, if any."""
        with suppress(InputError):  # missing, or damaged: it is made again
            statistics, about = HealthyStatistics.load(self.file)
            stored = json.loads(about)
            wanted = {base_of(name) for name in self.relative}
            if stored["key"] == self.key and wanted <= set(statistics.sums):
                self.scorer.statistics = statistics
                self.scorer.healthy = [self.cases[index] for index in stored["scans"]]
                return True
        return False

    def share(self, ranks: Ranks) -> None:
        """Have the first of several ranks learn from healthy scans, which all have reconstructed before."""
        if ranks.count == 1 or not self.relative or ranks.agreed(self.take_up()):
            return
        for case in self.scorer.load.in_turn(ranks.share(self.cases)):
            with suppress(*CASE_ERRORS):
                self.scorer.score(case, ())  # loaded and reconstructed, into the cache
        ranks.wait()
        if ranks.first:
            with suppress(InputError):  # too few: every case will say so
                self.know(self.relative)
        ranks.wait()
