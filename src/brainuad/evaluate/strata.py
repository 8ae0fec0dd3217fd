"""Figures of parts of a cohort: by site, age, lesion volume and whatever else its manifest tells."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from brainuad.evaluate.protocol import VALIDATION, healthy_name
from brainuad.evaluate.tables import Subject
from brainuad.evaluation import SIZE_CLASSES, by_subject, size_class, summarise

Row = dict[str, Any]
STRATA_MEASURES = (
    "average_precision",
    "chance",
    "best_dice",
    f"dice@{VALIDATION}",
    f"dice@{healthy_name(0.01)}",
)
AGE_EDGES = (40, 60)
AGE_CLASSES = ("< 40 years", "40-60 years", "> 60 years")
MOST_LEVELS = 8  # a column with more values than this, or than half its scans, is no stratum
Subjects = Mapping[tuple[str, str, str], Subject]


def strata(test: pd.DataFrame, subjects: Subjects, lesion_ml: Mapping[tuple[str, str], float]) -> list[Row]:
    """Return means of the main measures by site, age, lesion volume and whatever the manifest tells of few values."""
    rows: list[Row] = []
    measures = [name for name in STRATA_MEASURES if name in test]
    for dataset, group in test.groupby("set", sort=False):
        levels: dict[str, dict[str, str]] = defaultdict(dict)
        for case in dict.fromkeys(group["case"]):
            subject = subjects[str(dataset), "test", case]
            of_case = dict(subject.extra)
            if subject.age is not None:
                of_case["age"] = AGE_CLASSES[int(np.digitize(subject.age, AGE_EDGES))]
            if (str(dataset), case) in lesion_ml:
                of_case["lesion volume"] = SIZE_CLASSES[int(size_class(lesion_ml[str(dataset), case]))]
            for column, level in of_case.items():
                levels[column][case] = level
        for column, of_cases in levels.items():
            if not 2 <= len(set(of_cases.values())) <= min(MOST_LEVELS, len(of_cases) / 2):
                continue
            for (score, level), part in group.groupby(["score", group["case"].map(of_cases)], sort=False):
                people = [subjects[str(dataset), "test", case].name for case in part["case"]]
                for measure in measures:
                    figures = summarise(by_subject(people, part[measure].tolist()).values())
                    if figures.n:
                        place = {"set": dataset, "stratum": column, "level": level, "score": score}
                        rows.append({**place, "measure": measure, **vars(figures)})
    return rows
