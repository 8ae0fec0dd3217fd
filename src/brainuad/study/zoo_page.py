"""The zoo's page: all methods side by side, and one picture per data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from brainuad.data.cohort import Case
from brainuad.detector import Detector
from brainuad.evaluation import by_subject, holm, paired_difference, paired_permutation_test, summarise
from brainuad.evaluation.statistics import Summary
from brainuad.files import markdown_table, write_bytes
from brainuad.record import SCALE_MEANING
from brainuad.report.montage import Overlay, method_panels
from brainuad.scoring.names import OWN_MAP
from brainuad.scoring.repertoire import SCORE
from brainuad.scoring.scores import SECOND
from brainuad.study.figures import COLOURS
from brainuad.study.protocol import ANY, BASELINES, MODEL, healthy_name
from brainuad.study.scorer import CASE_ERRORS, Scorer
from brainuad.study.tables import FEW, failures, with_interval

REFERENCES = ("atlas", f"ddpm, {SCORE}")  # baseline of all comparisons
PRECISION, DICE, ABOVE = "average_precision", "best_dice", "above"
COSTS = {  # headings and decimals
    "parameters": ("parameters", 0),
    "steps": ("training steps", 0),
    "training_seconds": ("training (s)", 0),
    "scan_seconds": ("reconstruction and maps, a scan (s)", 2),
}


@dataclass(frozen=True, eq=False)
class Entry:
    """One training of one model, and its evaluation.

    Attributes:
        model: Name in the registry.
        seed: Seed of the training.
        scores: Its shown scores: see `shown_scores`.
        table: Contents of ``cases.csv``.
        costs: A number for each of ``COSTS``.
        device: Device of the training: "cpu", "cuda:0".
    """

    model: str
    seed: int
    scores: Sequence[str]
    table: pd.DataFrame
    costs: Mapping[str, float]
    device: str = "cpu"

    def methods(self) -> dict[str, str]:
        """Return the name of each shown score."""
        alone = len(self.scores) == 1
        return {score: self.model if alone else f"{self.model}, {score}" for score in self.scores}


def shown_scores(detector: Detector) -> tuple[str, ...]:
    """Return the scores that represent a model: its own map, else L1 and the SSIM ensemble of its reconstructions."""
    if detector.model.has_map:
        return (OWN_MAP,)
    both = ("l1", SCORE)
    return (*both, *(SECOND + name for name in both)) if detector.model.has_second else both


def telling_subject(table: pd.DataFrame, dataset: str) -> str | None:
    """Return the subject whose lesion volume is the median of a set's test scans, if any; no method influences it."""
    rows = table[(table["set"] == dataset) & (table["split"] == "test") & (table["metric"] == "lesion_ml")]
    rows = rows.sort_values("value", kind="stable")
    return str(rows["subject"].iloc[len(rows) // 2]) if len(rows) else None


def draw_set(dataset: str, cases: Sequence[Case], shown: Sequence[tuple[Entry, Detector]], path: Path) -> bool:
    """Draw one test scan of a set with the maps of all methods, each on a colour scale calibrated on healthy scans.

    Return whether there was anything to draw.
    """
    subject = telling_subject(shown[0][0].table, dataset) if shown else None
    case = next((c for c in cases if (c.dataset, c.subject, c.split) == (dataset, subject, "test")), None)
    if case is None:
        return False
    overlays: list[Overlay] = []
    image = lesion = None
    for entry, detector in shown:
        try:
            prepared, maps = Scorer(detector, entry.seed).score(case, entry.scores)
        except CASE_ERRORS:
            continue  # the page says so
        image, lesion = prepared.image, prepared.lesion
        table = entry.table[(entry.table["split"] == "test") & (entry.table["metric"] == "threshold")]
        for score, name in entry.methods().items():
            rows = table[table["score"] == score]
            # those of healthy scans are the same in every row
            at = dict(zip(rows["threshold"], rows["value"], strict=True))
            if COLOURS[0] in at:
                overlays.append(Overlay(name, maps.final[score], *(at[colour] for colour in COLOURS)))
    if image is None or lesion is None:
        return False
    title = f"{dataset}: {subject}"
    write_bytes(path, method_panels(image, lesion, overlays, title=title, scale_meaning=SCALE_MEANING).png())
    return True


def page(entries: Sequence[Entry], headings: Mapping[str, str], *, budget: str, failed: Sequence[str]) -> str:
    """Return the page as Markdown, with a heading for each data set with lesions and the training time in words."""
    seeds = len({entry.seed for entry in entries})
    lost = [
        f"{entry.model}, seed {entry.seed}: {row['set']} {row['case']}: {row['message']}"
        for entry in entries
        for row in failures(entry.table).to_dict("records")
    ]
    text = ["# Zoo of methods", "Research use only; not for diagnosis."]
    if failed or lost:
        text.append("\n".join(f"- failed: {message}" for message in (*failed, *lost)))
    if not entries:
        return "\n\n".join([*text, "Nothing could be evaluated."]) + "\n"
    text.append(
        f"Every model was trained for {budget} of wall-clock time, including compiling and validation: the same time, "
        "not the same number of steps. A model that is fitted in one pass takes as long as it needs. All were "
        "evaluated on the same scans by the same rules. "
        f"Trainings of each model: {seeds}; they are averaged within subjects."
    )
    text.append(
        f"Shown is a model's own map where it makes one, else both `l1` and `{SCORE}` of its "
        f"reconstruction. Without a model: {', '.join(f'`{name}`' for name in BASELINES)}."
    )
    test = _test_values(entries)
    for dataset, heading in headings.items():
        text += _set_page(heading, test[test["set"] == dataset])
    text += [*_healthy_page(test[~test["set"].isin(headings)]), *_costs_page(entries)]
    return "\n\n".join(text) + "\n"


def _test_values(entries: Sequence[Entry]) -> pd.DataFrame:
    """Return the values of test scans that the page needs, with the column "method"."""
    wanted = {(PRECISION, ANY), (DICE, ANY), ("chance", ANY), (ABOVE, healthy_name(0.01))}
    parts = []
    for entry in entries:
        names = entry.methods() | {name: name for name in BASELINES}
        table = entry.table[(entry.table["split"] == "test") & (entry.table["space"] == MODEL)]
        measured = pd.Series(list(zip(table["metric"], table["threshold"], strict=True)), index=table.index)
        table = table[measured.isin(wanted) & table["score"].isin(names)]
        parts.append(table.assign(method=table["score"].map(names)))
    return pd.concat(parts)


def _values(rows: pd.DataFrame, method: str, metric: str) -> dict[str, float]:
    """Return one value per subject: the mean over its scans and all trainings."""
    chosen = rows[(rows["method"] == method) & (rows["metric"] == metric)]
    return by_subject(chosen["subject"].tolist(), chosen["value"].tolist())


def _set_page(heading: str, rows: pd.DataFrame) -> list[str]:
    precision = {name: _values(rows, name, PRECISION) for name in dict.fromkeys(rows["method"])}
    precision = {name: values for name, values in precision.items() if values}
    if not precision:
        return [f"## {heading}", "No scan could be measured."]
    chance = summarise(_values(rows, next(iter(precision)), "chance").values()).mean
    references = [name for name in REFERENCES if name in precision]
    against = {
        (name, reference): _against(precision[name], precision[reference])
        for name in precision
        for reference in references
        if name != reference and precision[name].keys() & precision[reference].keys()
    }
    adjusted = dict(zip(against, holm([p for _, p in against.values()]), strict=True))
    summaries = {name: summarise(values.values()) for name, values in precision.items()}
    cells = []
    for name, found in sorted(summaries.items(), key=lambda item: -item[1].mean):
        dice = summarise(_values(rows, name, DICE).values())
        differences = [
            _difference(against[name, other][0], adjusted[name, other]) if (name, other) in against else "-"
            for other in references
        ]
        cells.append([name, str(found.n), with_interval(vars(found)), with_interval(vars(dice)), *differences])
    heads = ["method", "subjects", "average precision", "best Dice (oracle)"]
    heads += [f"average precision less that of {name}" for name in references]
    return [
        f"## {heading}",
        f"Chance level of average precision {chance:.4f}. Means over subjects with 95 % BCa intervals, the highest "
        "first. Differences are paired within subjects; p of the paired permutation test, by Holm's method for all "
        "differences of this table. Best Dice is at each scan's best threshold: an upper bound.",
        markdown_table(heads, cells),
    ]


def _against(ours: Mapping[str, float], theirs: Mapping[str, float]) -> tuple[Summary, float]:
    """Return the differences of common subjects, and the p-value."""
    shared = [subject for subject in ours if subject in theirs]
    a, b = ([values[subject] for subject in shared] for values in (ours, theirs))
    return paired_difference(a, b), paired_permutation_test(a, b)


def _healthy_page(rows: pd.DataFrame) -> list[str]:
    sets = list(dict.fromkeys(rows["set"]))
    if not sets:
        return []
    cells = []
    for method in dict.fromkeys(rows["method"]):
        found = [summarise(_values(rows[rows["set"] == name], method, ABOVE).values()) for name in sets]
        if any(summary.n for summary in found):
            cells.append([method, *(with_interval(vars(summary), digits=2, factor=100) for summary in found)])
    said = "Percentage of the brain above the threshold that 1 % of healthy validation brain exceeds; 1 is ideal:"
    return ["## Healthy test scans", said, markdown_table(["method", *sets], cells)] if cells else []


def _costs_page(entries: Sequence[Entry]) -> list[str]:
    costs = pd.DataFrame([{"model": entry.model, **entry.costs} for entry in entries])
    means = costs.groupby("model", sort=False)[list(COSTS)].mean()
    cells = [
        [str(model), *(f"{row[name]:,.{digits}f}" for name, (_, digits) in COSTS.items())]
        for model, row in means.iterrows()
    ]
    devices = ", ".join(dict.fromkeys(entry.device for entry in entries))
    said = f"On {devices}. Means over trainings. Seconds per scan are measured on one test scan, without loading:"
    return ["## Costs", said, markdown_table(["model", *(title for title, _ in COSTS.values())], cells)]


def _difference(found: Summary, p: float) -> str:
    return with_interval(vars(found), sign="+") + (f", p {p:.2g}" if found.n >= FEW else "")
