"""Results of single cases: read from disk if finished, else measured."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from brainuad._version import __version__
from brainuad.data.cohort import Case
from brainuad.data.leaks import People, people, scans_of_others
from brainuad.data.loading import PreparedCase
from brainuad.data.volume import Volume
from brainuad.detector import Maps
from brainuad.errors import InputError
from brainuad.evaluation import ScoreHistogram, pooled_greedy_threshold, scan_froc
from brainuad.files import key_of
from brainuad.scoring.health import HealthyStatistics
from brainuad.scoring.names import IMAGE, base_of
from brainuad.scoring.rarity import RARITY
from brainuad.scoring.scores import OF_THE_IMAGE
from brainuad.study.measures import Measures, Space, case_facts, measure, model_space, native_space
from brainuad.study.progress import Progress, read_histograms, without_nan, write_histograms
from brainuad.study.protocol import MODEL, Protocol, Thresholds
from brainuad.study.ranks import Ranks
from brainuad.study.scorer import CASE_ERRORS, MIN_OTHERS, Scorer

Row = dict[str, Any]
NO_THRESHOLDS = Thresholds()
HEALTH_FILE = "health.safetensors"


class Health:
    """Healthy-scan statistics for scores relative to health, learnt once from validation scans and stored."""

    def __init__(self, scorer: Scorer, cases: Sequence[Case], scores: Sequence[str], key: str, output: Path) -> None:
        self.scorer, self.cases, self.file = scorer, list(cases), output / HEALTH_FILE
        self.relative = [name for name in scores if base_of(name) is not None]
        carried = scorer.detector.health.fingerprint if scorer.detector.health else ""
        scans = [(case.dataset, case.subject, scorer.load.content(case)) for case in self.cases]
        self.key = key_of(key, scans, people(self.cases), carried)
        self._people = People(self.cases)

    def key_for(self, case: Case) -> str:
        """Return a hash of everything that can change the statistics that a case is compared with."""
        return key_of(self.key, self._people.own(case))

    def ensure(self, names: Sequence[str]) -> None:
        """Load or learn the statistics if any of ``names`` needs them.

        Raises:
            InputError: Too few scans can be used, and the model has no statistics.
        """
        scorer = self.scorer
        if scorer.statistics is not None or not set(self.relative) & set(names):
            return
        carried = scorer.detector.health is not None  # then the model's statistics are used
        if (carried and scans_of_others(self.cases) < MIN_OTHERS) or self.load_stored():
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

    def load_stored(self) -> bool:
        """Load the statistics of an earlier run, or of the first rank; return whether there were any."""
        with suppress(InputError):  # missing or damaged: learn them again
            statistics, about = HealthyStatistics.load(self.file)
            stored = json.loads(about)
            wanted = {base_of(name) for name in self.relative}
            if stored["key"] == self.key and wanted <= set(statistics.sums):
                self.scorer.statistics = statistics
                self.scorer.healthy = [self.cases[index] for index in stored["scans"]]
                return True
        return False

    def learn_across(self, ranks: Ranks) -> None:
        """Learn the statistics in the first of several ranks, after all ranks have reconstructed the healthy scans."""
        if ranks.count == 1 or not self.relative or ranks.agreed(self.load_stored()):
            return
        needed = {base for name in self.relative if (base := base_of(name)) not in (None, IMAGE)}
        for case in self.scorer.load.in_turn(ranks.own_part(self.cases)):
            with suppress(*CASE_ERRORS):
                self.scorer.reconstruct(case, needed)
        ranks.wait()
        if ranks.first:
            with suppress(InputError):  # too few: every case will report it
                self.ensure(self.relative)
        ranks.wait()


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", text)


@dataclass(frozen=True, eq=False)
class Result:
    """Results of one case: measures by score and space, counts by "space score"."""

    facts: dict[str, float]
    measures: dict[str, dict[str, Measures]]
    froc: dict[str, dict[str, Any]]
    histograms: dict[str, ScoreHistogram]


class Results:
    """The results of cases, in ``progress.jsonl``, ``histograms/`` and ``health.safetensors`` of a folder."""

    def __init__(
        self,
        scorer: Scorer,
        scores: Sequence[str],
        protocol: Protocol,
        output: Path,
        healthy: Sequence[Case],
        rank: int = 0,
        on_scored: Callable[[PreparedCase, Maps], None] = lambda prepared, maps: None,
        *,
        maps: bool = False,
    ) -> None:
        self.scorer, self.protocol, self.on_scored = scorer, protocol, on_scored
        self.folder = output / "histograms"
        self.maps = output / "maps" if maps else None
        self.progress = Progress(output / "progress.jsonl", rank)
        detector = scorer.detector.result_key
        self.key = key_of(__version__, detector, asdict(protocol), scorer.seed, scorer.postprocess)
        self.health = Health(scorer, healthy, scores, self.key, output)

    def of(self, case: Case, thresholds: Mapping[str, Thresholds]) -> Result:
        """Return a case's results, and measure what is missing, each score at its thresholds; may raise CASE_ERRORS."""
        keys = {name: self.case_key(case, name, at) for name, at in thresholds.items()}
        facts_key = self.case_key(case)
        entries = {name: entry for name, key in keys.items() if (entry := self.progress.get(key)) is not None}
        histograms: dict[str, ScoreHistogram] = {}
        for file in dict.fromkeys(entry["histograms"] for entry in entries.values()):
            histograms |= read_histograms(self.folder / file)
        missing = [
            name
            for name in keys
            if name not in entries or f"{MODEL} {name}" not in histograms or self.lacks_map(case, name)
        ]
        facts = self.progress.get(facts_key)
        if missing or facts is None:
            self.health.ensure(missing)
            prepared, maps = self.scorer.score(case, missing)
            self.scorer.stage(f"{case.subject}: measure")
            file = f"{key_of(*(keys[name] for name in missing))}.npz"
            found, fresh, counts = self.measure(prepared, maps, thresholds, file)
            self.write_maps(prepared, maps)
            write_histograms(self.folder / file, counts)
            if facts is None:  # else another run measured other scores, or a run ended between two lines
                facts = found
                self.progress.put(facts_key, without_nan(facts))
            for name in missing:
                self.progress.put(keys[name], without_nan(fresh[name]))
            entries |= fresh
            histograms |= counts
            self.on_scored(prepared, maps)
        return Result(
            facts,
            {name: entries[name]["measures"] for name in keys},
            {name: entries[name]["froc"] for name in keys if entries[name]["froc"] is not None},
            histograms,
        )

    def incomplete(self, case: Case, thresholds: Mapping[str, Thresholds]) -> bool:
        """Return whether any result of a case is missing, judged by the progress file."""
        keys = [self.case_key(case), *(self.case_key(case, name, at) for name, at in thresholds.items())]
        return not all(key in self.progress for key in keys) or any(self.lacks_map(case, name) for name in thresholds)

    def map_path(self, case: Case, name: str) -> Path | None:
        """Return where a map is written, ``maps/SET/SUBJECT_SCORE_KEY.nii.gz``; None of scores without a model.

        The key tells scans of one name apart, and models, scans and settings whose results are in the same folder.
        """
        if self.maps is None or name in OF_THE_IMAGE:
            return None
        stem = f"{case.subject}_{name}_{self.case_key(case, name)[:8]}"
        return self.maps / _file_name(case.dataset) / f"{_file_name(stem)}.nii.gz"

    def lacks_map(self, case: Case, name: str) -> bool:
        """Return whether a map is wanted and not there."""
        path = self.map_path(case, name)
        return path is not None and not path.is_file()

    def write_maps(self, prepared: PreparedCase, maps: Maps) -> None:
        """Write the maps of a case that are wanted, on the model's grid, in the space of the scan."""
        for name, map in maps.final.items():
            if (path := self.map_path(prepared.case, name)) is not None:
                Volume.from_array(map, prepared.affine).save(path, np.float32)

    def greedy_threshold(self, cases: Sequence[Case], name: str) -> float:
        """Return the threshold of the release's search on the pooled maps of cases, which are computed again.

        The search compares Dice at thresholds that few voxels may separate, so binned counts are too coarse for it.
        """
        key = key_of("greedy threshold", [self.case_key(case, name) for case in cases])
        known = self.progress.get(key)
        if known is None:
            self.health.ensure([name])
            maps, lesions = [], []
            for case in self.scorer.load.in_turn(cases):
                prepared, found = self.scorer.score(case, [name])
                space = self.model_space(prepared)
                maps.append(found.final[name][space.voxels])
                lesions.append(space.truth[space.voxels])
            known = without_nan([pooled_greedy_threshold(maps, lesions)])
            self.progress.put(key, known)
        return math.nan if known[0] is None else float(known[0])

    def model_space(self, prepared: PreparedCase) -> Space:
        """Return the space of a case on the model's grid."""
        spacing = self.scorer.detector.data_config.rescaleFactor
        return model_space(prepared, self.protocol, spacing, cleaned=self.scorer.postprocess)

    def measure(
        self, prepared: PreparedCase, maps: Maps, thresholds: Mapping[str, Thresholds], file: str
    ) -> tuple[dict[str, float], dict[str, Row], dict[str, ScoreHistogram]]:
        """Return a scored case's values, its entries by score, and its counts by "space score"."""
        model = self.model_space(prepared)
        spaces = [model]
        if self.protocol.native:
            spaces.append(native_space(prepared, self.scorer.load.native(prepared), model))
        entries: dict[str, Row] = {}
        histograms = {}
        for name, anomaly in maps.final.items():
            at, measures, froc = thresholds[name], {}, None
            for space in spaces:
                measures[space.name], counts = measure(space, anomaly, self.protocol, at)
                histograms[f"{space.name} {name}"] = counts
            if self.protocol.lesion_wise and at.froc and prepared.case.split == "test":
                froc = scan_froc(anomaly, model.lesions, at.froc, min_voxels=model.min_voxels).to_dict()
            entries[name] = {"measures": measures, "froc": froc, "histograms": file}
        return case_facts(model, maps.reconstruction), entries, histograms

    def case_key(self, case: Case, name: str = "", thresholds: Thresholds = NO_THRESHOLDS) -> str:
        """Return a hash of everything that can change the measures of a case's score."""
        values = without_nan(asdict(thresholds))
        relative = name and (name == RARITY or base_of(name) is not None)
        health = self.health.key_for(case) if relative else ""
        content = self.scorer.load.content(case)
        return key_of(self.key, case.dataset, case.subject, case.split, content, name, values, health)
