"""A sweep's means with intervals, as a page and as a figure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes

from brainuad.evaluation import by_subject, paired_difference, summarise
from brainuad.files import markdown_table
from brainuad.report.montage import drawable
from brainuad.study.figures import grid, save
from brainuad.study.tables import FEW, with_interval

BASE, SLICES, RAW = "3-D windows, post-processed", "2-D windows", "no post-processing"
WIDTH, ENSEMBLE, SCORE = "width", "ensemble", "score"
MEASURES = {"average_precision": "average precision", "best_dice": "Dice, oracle"}
KEYS = ["set", "variant", "kind", "name"]
COLOURS = {"default": "#d62728", "mean": "#9467bd", "max": "#8c564b", "min": "#e377c2"}
COLOURS |= {"softmin": "#bcbd22", "learnt": "#17becf", "l1": "#2ca02c"}
COLOURS |= {"random": "#cccccc", "intensity_bright": "#999999", "intensity_dark": "#444444"}
COLOURS |= {"intensity_atlas": "#ff7f0e"}


def page(table: pd.DataFrame, widths: Sequence[float], failed: Sequence[str]) -> tuple[pd.DataFrame, str]:
    """Return means over subjects with 95 % BCa intervals of a row a case and map, and a page that shows them."""
    rows = []
    for keys, group in table.groupby(KEYS, sort=False):
        for measure in (*MEASURES, "chance"):
            values = by_subject(group["case"].tolist(), group[measure].tolist())
            identity = {**dict(zip(KEYS, keys, strict=True)), "measure": measure}
            rows.append(identity | vars(summarise(values.values())))
    summary = pd.DataFrame(rows)
    listed = ", ".join(f"{width:g}" for width in widths)
    text = [
        "# Widths of SSIM",
        "Research use only; not for diagnosis.",
        f"Means over scans with 95 % BCa bootstrap intervals over subjects. Ensembles are over the widths {listed}. "
        "The best width is chosen on the same scans, so its figures are an upper bound.",
        *(f"- failed: {message}" for message in failed),
    ]
    for dataset, group in table.groupby("set", sort=False):
        text += list(_set_page(str(dataset), group, summary[summary["set"] == dataset]))
    return summary, "\n\n".join(text) + "\n"


def _set_page(dataset: str, table: pd.DataFrame, summary: pd.DataFrame) -> Iterator[str]:
    base = summary[summary["variant"] == BASE]
    chance = float(base[base["measure"] == "chance"]["mean"].iloc[0])
    yield f"## {dataset}: {table['case'].nunique()} scans, chance level of average precision {chance:.4f}"
    yield markdown_table(
        ["map", *MEASURES.values()], [[_title(kind, name), *cells] for kind, name, cells in _cells(base)]
    )
    best, differences = _against_best(table[table["variant"] == BASE])
    if differences:
        yield f"Average precision less that of the best width, {best}, paired by subject:"
        yield markdown_table(["map", "difference"], differences)
    variants = [name for name in dict.fromkeys(summary["variant"]) if name != BASE]
    if variants:
        yield "Ablations, average precision; each column changes one thing:"
        columns = {name: {(k, n): c[0] for k, n, c in _cells(summary[summary["variant"] == name])} for name in variants}
        rows = [
            [_title(kind, name), cells[0], *(columns[variant].get((kind, name), "-") for variant in variants)]
            for kind, name, cells in _cells(base)
        ]
        yield markdown_table(["map", BASE, *variants], rows)


def _cells(summary: pd.DataFrame) -> Iterator[tuple[str, str, list[str]]]:
    for (kind, name), group in summary.groupby(["kind", "name"], sort=False):
        by_measure = group.set_index("measure").to_dict("index")
        yield str(kind), str(name), [with_interval(by_measure[measure]) for measure in MEASURES]


def _against_best(table: pd.DataFrame) -> tuple[str, list[list[str]]]:
    values = table.pivot_table(index="case", columns=["kind", "name"], values="average_precision", sort=False)
    widths = [column for column in values if column[0] == WIDTH]
    best = max(widths, key=lambda column: values[column].mean())
    if len(values) < 2:
        return best[1], []
    rows = [
        [_title(*column), with_interval(vars(paired_difference(values[column], values[best])), sign="+")]
        for column in values
        if column[0] != WIDTH
    ]
    return best[1], rows


def draw(summary: pd.DataFrame, path: Path) -> None:
    """Draw the figure: a column per set, a row per measure, horizontal lines for ensembles and other scores."""
    base = summary[summary["variant"] == BASE]
    sets = list(dict.fromkeys(base["set"]))
    figure, axes = grid(4.2 * len(sets) + 1.6, 6.4, len(MEASURES), len(sets), sharex=True)
    for row, (measure, title) in zip(axes, MEASURES.items(), strict=True):
        for axis, dataset in zip(row, sets, strict=True):
            of_set = base[base["set"] == dataset]
            _draw_panel(axis, of_set[of_set["measure"] == measure])
            axis.set_ylabel(title if axis is row[0] else "")
            if measure == "average_precision":
                scans = int(of_set["n"].max())
                axis.set_title(drawable(f"{dataset} ({scans} scans)"), fontsize=10)
                chance = of_set[of_set["measure"] == "chance"]["mean"].iloc[0]
                axis.axhline(chance, color="k", ls=":", lw=1, label="chance")
    for axis in axes[-1]:
        axis.set_xlabel("width of the SSIM window (voxels)")
    save(figure, path, fontsize=8)


def _draw_panel(axis: Axes, rows: pd.DataFrame) -> None:
    widths = rows[rows["kind"] == WIDTH].assign(sigma=lambda part: part["name"].astype(float)).sort_values("sigma")
    axis.plot(widths["sigma"], widths["mean"], "o-", color="#1f77b4", ms=3, label="one width")
    if widths["n"].min() >= FEW:
        axis.fill_between(widths["sigma"], widths["low"], widths["high"], color="#1f77b4", alpha=0.15, lw=0)
    for row in rows[rows["kind"] != WIDTH].to_dict("records"):
        solid = "-" if row["kind"] == ENSEMBLE else "--"
        label = _title(row["kind"], row["name"])
        axis.axhline(row["mean"], label=label, color=COLOURS.get(row["name"]), lw=1.2, ls=solid)
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.25)


def _title(kind: str, name: str) -> str:
    return {WIDTH: f"width {name}", ENSEMBLE: f"ensemble, {name}", SCORE: name}[kind]
