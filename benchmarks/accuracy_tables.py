"""The tables of ``benchmarks/accuracy.py``, as fragments of Markdown for docs/results.md. Real lesions come first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from brainuad.evaluation import holm, paired_difference, paired_permutation_test, paired_ratio, summarise
from brainuad.files import write_text
from brainuad.study import BASELINES, failures, wide
from brainuad.study.sweep_page import BASE, ENSEMBLE, SCORE, WIDTH

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


def write_candidates(folder: Path, group: str, found: Candidates, plain: Sequence[str]) -> None:
    """Write what was compared on real or simulated lesions: noise by score, scores, cleaning, steps to the best."""
    noises = list(dict.fromkeys(noise for noise, _, _ in found))
    all_scores = [*plain, *(f"{name}_z" for name in plain)]
    usual = {key[:2]: values for key, values in found.items() if key[2] == USUAL}
    paper = (noises[0], PAPER_SCORE)
    best = max(usual, key=lambda key: over_kinds(usual[key]).mean())
    kinds = kinds_of(usual[paper])
    subjects = len(over_kinds(usual[paper]))
    where = f"Mean average precision over {', '.join(kinds)} lesions, {subjects} validation subjects"
    folder = folder / group
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
        ["score", "noise", "mean", "gain"],
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
        ["score", *kinds, "mean", "gain", "gain of _z"],
        rows,
    )
    cleaned = {key[2]: values for key, values in found.items() if key[:2] == best}
    if len(cleaned) > 1:
        write_postprocessing(folder, cleaned, where, best)
    write(
        folder / "validation_steps.md",
        f"{where}: from the paper's preset to the best candidate. Gains are paired. What is best is chosen on these "
        "very scans; the tables on test scans decide.",
        ["step", "mean", "gain over the step before", "gain over the paper's preset", "times the paper's"],
        steps(found, noises, plain),
    )


def write_postprocessing(folder: Path, cleaned: Mapping[str, pd.DataFrame], where: str, best: tuple[str, str]) -> None:
    """Write post-processing by pathology, and what choosing it for each pathology could give."""
    kinds = kinds_of(cleaned[USUAL])
    rows = [
        [name, *by_kind(values), cell(over_kinds(values)), difference(values, cleaned[USUAL])]
        for name, values in cleaned.items()
    ]
    by_scale = pd.DataFrame(
        {kind: max((values[kind] for values in cleaned.values()), key=np.nanmean) for kind in kinds}
    )
    gain = difference(by_scale, cleaned[USUAL])
    rows.append(["the best for each kind (chosen here)", *by_kind(by_scale), cell(over_kinds(by_scale)), gain])
    write(
        folder / "validation_postprocessing.md",
        f"{where}, post-processing of {best[1]} at {best[0]}; gain over {USUAL} (the paper's). All but none erode the "
        "brain's rim first; components of fewer voxels are sunk at every threshold.",
        ["post-processing", *kinds, "mean", "gain"],
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


def write_ensembles(folder: Path, group: str, swept: pd.DataFrame) -> None:
    """Write ensembles of SSIM and single widths on real or simulated lesions of validation scans."""
    base = swept[swept["variant"] == BASE]
    values = {
        (str(kind), str(name)): part.pivot(index="case", columns="set", values="average_precision")
        for (kind, name), part in base.groupby(["kind", "name"], sort=False)
    }
    default = values[ENSEMBLE, "default"]
    write(
        folder / group / "validation_ensembles.md",
        f"Average precision, {len(default)} validation subjects, at the model's own noise levels; gain over the "
        "published weights. Weights of `learnt` were learnt on the other half of the subjects.",
        ["map", *kinds_of(default), "mean", "gain"],
        [[title(*key), *by_kind(v), cell(over_kinds(v)), difference(v, default)] for key, v in values.items()],
    )


# ---- on test -------------------------------------------------------------------------------------------------------


def write_test(folder: Path, evaluations: Mapping[str, pd.DataFrame], simulated: Mapping[str, str]) -> None:
    """Write a table a set, and one of all sets."""
    test = pd.concat([wide(table, split="test").assign(run=run) for run, table in evaluations.items()])
    sets = real_first(test, simulated)
    own_score = chosen_score(evaluations["own"], simulated)
    failed = failures(evaluations["own"])
    for dataset in sets:
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
    write_means(folder, test, own_score, simulated)
    write_intensities(folder, test, own_score, simulated)


def write_means(folder: Path, test: pd.DataFrame, own_score: str, simulated: Mapping[str, str]) -> None:
    """Write average precision by set, real ones first, and what is marked in healthy brains."""
    sick = test["average_precision"].notna()
    lesions, healthy = real_first(test[sick], simulated), real_first(test[~sick], simulated)
    real = [name for name in lesions if name not in simulated]
    drawn = [name for name in lesions if name in simulated]
    above, digits = HEALTHY_COLUMNS["above healthy@0.01"]
    values = {
        (str(run), str(score)): part.set_index(["set", "case"])
        for (run, score), part in test.groupby(["run", "score"], sort=False)
    }
    four = {
        key: over_kinds(of_map.loc[drawn, "average_precision"].unstack("set").rename(columns=simulated))
        for key, of_map in values.items()
    }
    paper = four["paper", PAPER_SCORE]
    chance = test[sick].groupby("set")["chance"].mean()
    write(
        folder / "test_means.md",
        f"Average precision on test scans, and the share of healthy brains that is marked. Chosen on validation: "
        f"{own_score}.",
        [
            "settings", "score",
            *(f"{name}, chance {chance[name]:.3f}" for name in real),
            *(f"{name}: above healthy@0.01" for name in healthy),
            *drawn, "all four simulated", "times the paper's preset",
        ],
        [
            [
                *key,
                *(cell(of_map.loc[name, "average_precision"]) for name in real),
                *(cell(of_map.loc[name, above], digits) for name in healthy),
                *(f"{of_map.loc[name, 'average_precision'].mean():.3f}" for name in drawn),
                cell(four[key]), ratio(four[key], paper),
            ]
            for key, of_map in values.items()
        ],
    )  # fmt: skip


def chosen_score(own: pd.DataFrame, simulated: Mapping[str, str]) -> str:
    """Return the score with the highest mean on validation scans, baselines aside: of real lesions if there are any."""
    val = wide(own, split="val")
    val = val[val["average_precision"].notna() & ~val["score"].isin(BASELINES)]
    real = val[~val["set"].isin(simulated)]
    return str((val if real.empty else real).groupby("score")["average_precision"].mean().idxmax())


def real_first(test: pd.DataFrame, simulated: Mapping[str, str]) -> list[str]:
    """Return the sets of a table: real lesions, healthy scans, simulated lesions in their given order."""
    sick = set(test.loc[test["average_precision"].notna(), "set"])
    sets = list(dict.fromkeys(test["set"]))
    return [
        *(name for name in sets if name in sick and name not in simulated),
        *(name for name in sets if name not in sick),
        *(name for name in simulated if name in sets),
    ]


def write_intensities(folder: Path, test: pd.DataFrame, own_score: str, simulated: Mapping[str, str]) -> None:
    """Write the chosen score less every baseline of intensity, for every set, with tests."""
    own = test[(test["run"] == "own") & test["average_precision"].notna()]
    rows, p = [], []
    for dataset in real_first(own, simulated):
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


def write_sweep(
    folder: Path, swept: pd.DataFrame, evaluations: Mapping[str, pd.DataFrame], simulated: Mapping[str, str]
) -> None:
    """Write average precision by width and ensemble, and what it says of the paper's claims."""
    base = swept[swept["variant"] == BASE]
    sets = real_first(base, simulated)
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


def kinds_of(values: pd.DataFrame) -> list[str]:
    """Return the columns of a table: the simulated kinds in their order, or what real lesions are called."""
    return [kind for kind in KINDS if kind in values] or list(values)


def over_kinds(values: pd.DataFrame) -> pd.Series:
    """Return each subject's mean over the kinds; subjects who lack one are left out."""
    return values[kinds_of(values)].dropna().mean(axis=1)


def by_kind(values: pd.DataFrame) -> list[str]:
    """Return each pathology's mean."""
    return [f"{values[kind].mean():.3f}" for kind in kinds_of(values)]


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
