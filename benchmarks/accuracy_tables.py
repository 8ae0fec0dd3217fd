"""The tables of ``benchmarks/accuracy.py``, as fragments of Markdown for docs/results.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from brainuad.evaluate import BASELINES, failures, wide
from brainuad.evaluation import holm, paired_difference, paired_permutation_test, paired_ratio, summarise
from brainuad.files import write_text
from brainuad.sweep.names import BASE, ENSEMBLE, SCORE, WIDTH

Key = tuple[str, str, str]  # noise, score, post-processing
Candidates = dict[Key, pd.DataFrame]  # average precision, subjects by pathologies
KINDS = ("stroke", "ms", "wmh", "tumour")
PAPER_SCORE, USUAL = "ssim_ensemble", "median 5"
INTENSITIES = tuple(name for name in BASELINES if name != "random")
# Heading to column and digits.
COLUMNS = {
    "average precision": ("average_precision", 3),
    "times chance": ("average_precision_ratio", 1),
    "Dice, oracle": ("best_dice", 3),
    "Dice, validation": ("dice@validation", 3),
    "Dice, healthy@0.05": ("dice@healthy@0.05", 3),
    "Dice, healthy@0.01": ("dice@healthy@0.01", 3),
}
HEALTHY_COLUMNS = {
    "share of brain above healthy@0.05": ("above@healthy@0.05", 4),
    "above healthy@0.01": ("above@healthy@0.01", 4),
}
FEW = 3  # of fewer subjects the values stand there, without an interval


# ---- candidates, on validation -------------------------------------------------------------------------------------


def best_of(found: Candidates) -> Key:
    """Return the candidate of the highest mean over pathologies."""
    return max(found, key=lambda key: over_kinds(found[key]).mean())


def write_candidates(folder: Path, found: Candidates, plain: Sequence[str]) -> None:
    """Write what was compared: noise by score, each score, post-processing, and the steps to the best."""
    noises = list(dict.fromkeys(noise for noise, _, _ in found))
    all_scores = [*plain, *(f"{name}_z" for name in plain)]
    usual = {key[:2]: values for key, values in found.items() if key[2] == USUAL}
    paper = (noises[0], PAPER_SCORE)
    best = max(usual, key=lambda key: over_kinds(usual[key]).mean())
    subjects = len(over_kinds(usual[paper]))
    where = f"Mean average precision over {', '.join(KINDS)}, {subjects} validation subjects"
    write(
        folder / "validation_all.md",
        f"{where}, by noise and score.",
        ["score", *noises],
        [[s, *(f"{over_kinds(usual[n, s]).mean():.3f}" for n in noises)] for s in all_scores],
    )
    rows = []
    for score in dict.fromkeys((PAPER_SCORE, best[1])):
        for noise in noises:
            gain = difference(usual[noise, score], usual[noises[0], score])
            rows.append([score, noise, cell(over_kinds(usual[noise, score])), gain])
    write(
        folder / "validation_noise.md",
        f"{where}; gain over the same score at {noises[0]}.",
        ["score", "noise", "all four", "gain"],
        rows,
    )
    rows = []
    for score in all_scores:
        values, bare = usual[best[0], score], score.removesuffix("_z")
        gain = difference(values, usual[best[0], PAPER_SCORE])
        relative = difference(values, usual[best[0], bare])
        rows.append([score, *by_kind(values), cell(over_kinds(values)), gain, relative])
    write(
        folder / "validation_scores.md",
        f"{where}, scores at {best[0]}; gain over {PAPER_SCORE} there, and of being relative to health.",
        ["score", *KINDS, "all four", "gain", "gain of _z"],
        rows,
    )
    cleaned = {key[2]: values for key, values in found.items() if key[:2] == best}
    if len(cleaned) > 1:
        write_postprocessing(folder, cleaned, where, best)
    write(
        folder / "validation_steps.md",
        f"{where}: from the paper's preset to the best candidate. Gains are paired. What is best is chosen on these "
        "very scans; the tables on test scans decide.",
        [
            "step",
            "all four",
            "gain over the step before",
            "gain over the paper's preset",
            "times the paper's",
        ],
        steps(found, noises, plain),
    )


def write_postprocessing(
    folder: Path, cleaned: Mapping[str, pd.DataFrame], where: str, best: tuple[str, str]
) -> None:
    """Write post-processing by pathology, and what choosing it for each pathology could give."""
    rows = [
        [name, *by_kind(values), cell(over_kinds(values)), difference(values, cleaned[USUAL])]
        for name, values in cleaned.items()
    ]
    by_scale = pd.DataFrame(
        {kind: max((values[kind] for values in cleaned.values()), key=np.nanmean) for kind in KINDS}
    )
    gain = difference(by_scale, cleaned[USUAL])
    rows.append(
        ["the best for each kind (chosen here)", *by_kind(by_scale), cell(over_kinds(by_scale)), gain]
    )
    write(
        folder / "validation_postprocessing.md",
        f"{where}, post-processing of {best[1]} at {best[0]}; gain over {USUAL} (the paper's). All but none erode the "
        "brain's rim first; components of fewer voxels are sunk at every threshold.",
        ["post-processing", *KINDS, "all four", "gain"],
        rows,
    )


def steps(found: Candidates, noises: Sequence[str], plain: Sequence[str]) -> list[list[str]]:
    """Return a row a step: the score, its comparison with health, draws, noise levels, all together, cleaning."""
    first, draws = noises[0], noises[min(1, len(noises) - 1)]

    def highest(keys: Iterable[Key]) -> Key:
        return best_of({key: found[key] for key in keys})

    paper = (first, PAPER_SCORE, USUAL)
    score = highest((first, name, USUAL) for name in plain)
    relative = (first, f"{score[1]}_z", USUAL)
    several = highest((noise, relative[1], USUAL) for noise in noises)
    both = highest(key for key in found if key[2] == USUAL)
    cleaned = highest(key for key in found if key[:2] == both[:2])
    chain = [
        ("the paper's preset", paper, paper),
        ("the best score", score, paper),
        ("relative to health", relative, score),
        ("four draws averaged", (draws, relative[1], USUAL), relative),
        ("the best noise levels", several, relative),
        ("the best score at the best noise levels", both, several),
        ("the best post-processing", cleaned, both),
    ]
    return [
        [
            f"{what}: {', '.join(key)}",
            cell(over_kinds(found[key])),
            difference(found[key], found[before]),
            difference(found[key], found[paper]),
            ratio(over_kinds(found[key]), over_kinds(found[paper])),
        ]
        for what, key, before in chain
    ]


def write_ensembles(folder: Path, swept: pd.DataFrame) -> None:
    """Write ensembles of SSIM and single widths on validation scans."""
    base = swept[swept["variant"] == BASE]
    values = {
        (str(kind), str(name)): part.pivot(index="case", columns="set", values="average_precision")
        for (kind, name), part in base.groupby(["kind", "name"], sort=False)
    }
    default = values[ENSEMBLE, "default"]
    write(
        folder / "validation_ensembles.md",
        f"Average precision, {len(default)} validation subjects, at the model's own noise levels; gain over the "
        "published weights. Weights of `learnt` were learnt on the other half of the subjects.",
        ["map", *KINDS, "all four", "gain"],
        [
            [title(*key), *by_kind(v), cell(over_kinds(v)), difference(v, default)]
            for key, v in values.items()
        ],
    )


# ---- on test -------------------------------------------------------------------------------------------------------


def write_test(folder: Path, evaluations: Mapping[str, pd.DataFrame], simulated: Mapping[str, str]) -> None:
    """Write a table a set, means over pathologies, and whether the goals are met."""
    test = pd.concat([wide(table, split="test").assign(run=run) for run, table in evaluations.items()])
    own_score = chosen_score(evaluations["own"], simulated)
    failed = failures(evaluations["own"])
    for dataset in dict.fromkeys(test["set"]):
        part = test[test["set"] == dataset]
        caption = f"{dataset}: {part['case'].nunique()} test scans"
        lost = int(((failed["set"] == dataset) & (failed["split"] == "test")).sum())
        caption += f", {lost} more could not be scored" if lost else ""
        columns = HEALTHY_COLUMNS
        if part["chance"].notna().any():
            columns = COLUMNS
            caption += f", chance level of average precision {part['chance'].mean():.4f}"
        name = dataset.replace("(", "").replace(")", "").replace(" ", "_")
        rows = [
            [run, score, *(cell(scored[column], digits) for column, digits in columns.values())]
            for (run, score), scored in part.groupby(["run", "score"], sort=False)
        ]
        write(folder / f"test_{name}.md", f"{caption}.", ["settings", "score", *columns], rows)
    values = {
        (str(run), str(score)): part.pivot(index="case", columns="set", values="average_precision")
        for (run, score), part in test[test["set"].isin(simulated)]
        .replace({"set": dict(simulated)})
        .groupby(["run", "score"], sort=False)
    }
    paper = values["paper", PAPER_SCORE]
    rows = []
    for (run, score), of_score in values.items():
        mean = over_kinds(of_score)
        rows.append([run, score, *by_kind(of_score), cell(mean), ratio(mean, over_kinds(paper))])
    write(
        folder / "test_means.md",
        f"Average precision, {len(over_kinds(paper))} test subjects. Chosen on validation: {own_score}.",
        ["settings", "score", *KINDS, "all four", "times the paper's preset"],
        rows,
    )
    write_intensities(folder, test, own_score, simulated)


def chosen_score(own: pd.DataFrame, simulated: Mapping[str, str]) -> str:
    """Return the score with the highest mean over pathologies on validation scans, baselines aside."""
    val = wide(own, split="val")
    val = val[val["set"].isin(simulated) & ~val["score"].isin(BASELINES)]
    return str(val.groupby("score")["average_precision"].mean().idxmax())


def write_intensities(folder: Path, test: pd.DataFrame, own_score: str, simulated: Mapping[str, str]) -> None:
    """Write the chosen score less every baseline of intensity, for every set, with tests."""
    own = test[(test["run"] == "own") & test["average_precision"].notna()]
    rows, p = [], []
    for dataset in dict.fromkeys(own["set"]):
        values = own[own["set"] == dataset].pivot(index="case", columns="score", values="average_precision")
        for baseline in (name for name in INTENSITIES if name in values):
            pair = values[own_score], values[baseline]
            tested = dataset in simulated
            p.append(paired_permutation_test(*pair) if tested else np.nan)
            rows.append([dataset, baseline, cell(values[baseline]), cell(pair[0]), difference(*pair)])
    adjusted = ["-" if np.isnan(value) else f"{value:.4f}" for value in holm(p)]
    write(
        folder / "test_intensity.md",
        f"Average precision of {own_score} (own settings; chosen on validation) less that of plain intensities; "
        "paired permutation tests, adjusted by Holm's method for all simulated ones.",
        ["set", "baseline", "its average precision", own_score, "difference", "p"],
        [[*row, value] for row, value in zip(rows, adjusted, strict=True)],
    )


def write_sweep(folder: Path, swept: pd.DataFrame, evaluations: Mapping[str, pd.DataFrame]) -> None:
    """Write average precision by width and ensemble, and what it says of the paper's claims."""
    base = swept[swept["variant"] == BASE]
    sets = list(dict.fromkeys(base["set"]))
    values = {
        (str(kind), str(name)): part.pivot(index="case", columns="set", values="average_precision")
        for (kind, name), part in base.groupby(["kind", "name"], sort=False)
    }
    write(
        folder / "test_sweep.md",
        "Average precision on test scans by width of the SSIM window (voxels) and by ensemble, own noise levels.",
        ["map", *sets],
        [[title(*key), *(cell(of_map[name]) for name in sets)] for key, of_map in values.items()],
    )
    default, l1 = values[ENSEMBLE, "default"], values[SCORE, "l1"]
    widths = [key for key in values if key[0] == WIDTH]
    best = {name: max(widths, key=lambda key: values[key][name].mean()) for name in sets}
    paper = wide(evaluations["paper"], split="test").pivot(
        index=["set", "case"], columns="score", values="average_precision"
    )
    dark = values[SCORE, "intensity_dark"]
    write(
        folder / "test_claims.md",
        "The paper's claims, as paired differences in average precision. The best width is chosen on these scans.",
        ["", *sets],
        [
            ["SSIM ensemble less L1, paper's preset",
             *(difference(paper.loc[name, PAPER_SCORE], paper.loc[name, "l1"]) for name in sets)],
            ["SSIM ensemble less L1, own noise", *(difference(default[name], l1[name]) for name in sets)],
            ["best single width", *(best[name][1] for name in sets)],
            ["SSIM ensemble less the best width",
             *(difference(default[name], values[best[name]][name]) for name in sets)],
            ["SSIM ensemble less dark intensity",
             *(difference(default[name], dark[name]) for name in sets)],
        ],
    )  # fmt: skip


# ---- cells ---------------------------------------------------------------------------------------------------------


def over_kinds(values: pd.DataFrame) -> pd.Series:
    """Return each subject's mean over all four kinds; subjects who lack one are left out."""
    return values.reindex(columns=list(KINDS)).dropna().mean(axis=1)


def by_kind(values: pd.DataFrame) -> list[str]:
    """Return each pathology's mean."""
    return [f"{values[kind].mean():.3f}" if kind in values else "-" for kind in KINDS]


def cell(values: Iterable[float], digits: int = 3) -> str:
    """Return mean and interval over subjects, or the values themselves where they are few."""
    known = [value for value in values if not np.isnan(value)]
    if len(known) < FEW:
        return ", ".join(f"{value:.{digits}f}" for value in known) or "-"
    found = summarise(known)
    return f"{found.mean:.{digits}f} ({found.low:.{digits}f} to {found.high:.{digits}f})"


def difference(values: pd.DataFrame | pd.Series, others: pd.DataFrame | pd.Series) -> str:
    """Return the paired difference of two candidates with its interval; of tables in the mean over kinds."""
    if values is others:
        return ""
    if isinstance(values, pd.DataFrame):
        values, others = over_kinds(values), over_kinds(others)
    values, others = values.dropna().align(others.dropna(), join="inner")
    if len(values) < FEW:
        return ", ".join(f"{value:+.3f}" for value in values - others) or "-"
    found = paired_difference(values, others)
    return f"{found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f})"


def ratio(values: pd.Series, others: pd.Series) -> str:
    """Return the ratio of two means over subjects with its interval."""
    values, others = values.align(others, join="inner")
    found = paired_ratio(values, others)
    return f"{found.value:.2f}" + (f" ({found.low:.2f} to {found.high:.2f})" if found.n >= FEW else "")


def title(kind: str, name: str) -> str:
    """Return what a map of the sweep is called."""
    return {WIDTH: f"width {name}", ENSEMBLE: f"ensemble, {name}", SCORE: name}[kind]


def write(path: Path, caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a caption and a table."""
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    write_text(path, "\n".join([caption, "", *lines, ""]))
