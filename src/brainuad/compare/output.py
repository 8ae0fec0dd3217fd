"""Write comparisons as a table on the screen, as CSV, as Markdown and as a page with figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from brainuad.compare.differences import Comparison, Comparisons
from brainuad.compare.runs import Run
from brainuad.evaluation.statistics import EXACT_UP_TO, RESAMPLES
from brainuad.files import markdown_table, write_text
from brainuad.report.svg import inline_svg
from brainuad.study.html_page import write_page

HEADINGS = ("set", "metric", "contestant", "baseline", "subjects", "mean", "baseline mean", "difference",
            "95 % interval", "larger / smaller", "p", "p (Holm)")  # fmt: skip
HEIGHTS = np.array((0, 4, -4, 2, -2, 5, -5, 3, -3)) / 30  # of the dots of a line, in turn
MOST_TITLED = 500  # dots of a figure that say whose they are: each takes a millisecond
LEGEND = (
    "Grey: single subjects. Blue: mean difference and its 95 % interval. Right of 0 the contestant's value is the "
    "larger."
)


def method(comparisons: Comparisons) -> str:
    """Return a paragraph that describes the statistics."""
    count = len(comparisons.rows)
    return (
        "Differences are contestant minus baseline within each case, averaged over a subject's cases and over "
        "subjects. Intervals: 95 %, "
        f"BCa bootstrap over subjects ({RESAMPLES:,} draws). p: two-sided paired permutation test, exact up to "
        f"{EXACT_UP_TO} subjects, {RESAMPLES:,} exchanges beyond. p (Holm): adjusted for the {count} "
        f"comparison{'s' * (count != 1)} shown, bold below 0.05. Real and simulated sets are never pooled."
    )


def cells(row: Comparison) -> tuple[str, ...]:
    """Return a comparison as text, one cell for each of ``HEADINGS``."""
    interval = "-" if math.isnan(row.low) else f"{row.low:+.3g} to {row.high:+.3g}"
    figures = (f"{row.mean:.3g}", f"{row.baseline_mean:.3g}", f"{row.difference:+.3g}", interval)
    names = (row.set, row.metric, row.contestant, row.baseline, str(row.subjects))
    return (*names, *figures, f"{row.larger} / {row.smaller}", f"{row.p:.2g}", f"{row.p_holm:.2g}")


def as_table(comparisons: Comparisons) -> str:
    """Return the comparisons as aligned text."""
    table = pd.DataFrame([cells(row) for row in comparisons.rows], columns=list(HEADINGS))
    return str(table.to_string(index=False))


def write_comparisons(
    output: str | Path, runs: Sequence[Run], comparisons: Comparisons, *, split: str, space: str
) -> Path:
    """Write ``compare.csv``, ``compare.md`` and, last, ``compare.html``; return the path of the page.

    Raises:
        InputError: The folder cannot be written to.
    """
    output = Path(output)
    table = pd.DataFrame([row.row() for row in comparisons.rows])
    write_text(output / "compare.csv", table.to_csv(index=False))
    text = _markdown(runs, comparisons, split, space)
    write_text(output / "compare.md", text)
    metrics = dict.fromkeys(row.metric for row in comparisons.rows)
    drawings = [
        (f"{metric}. {LEGEND}", _drawing(metric, [row for row in comparisons.rows if row.metric == metric]))
        for metric in metrics
    ]
    write_page(output / "compare.html", text, drawings=drawings)
    return output / "compare.html"


def _markdown(runs: Sequence[Run], comparisons: Comparisons, split: str, space: str) -> str:
    shown = []
    for row in comparisons.rows:
        *others, adjusted = (cell.replace("<", "&lt;") for cell in cells(row))
        shown.append([*others, f"**{adjusted}**" if row.p_holm < 0.05 else adjusted])
    parts = [
        "# Comparison",
        f"Split {split}, {space} space. " + method(comparisons),
        "\n".join(f"- {run.name}: `{run.folder}`" for run in runs),
        "\n".join(f"- Warning: {text}" for text in comparisons.warnings),
        markdown_table(HEADINGS, shown),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _drawing(metric: str, rows: Sequence[Comparison]) -> str:
    """Return a figure of paired differences, a line a comparison, as an ``<svg>`` element."""
    from matplotlib.figure import Figure  # slow to import

    from brainuad.report.montage import drawable

    figure = Figure(figsize=(9, 0.8 + 0.4 * len(rows)), layout="constrained")
    axis = figure.subplots()
    axis.axvline(0, color="0.4", ls="--", lw=1)
    titles: dict[str, str] = {}
    titled = sum(len(row.differences) for row in rows) <= MOST_TITLED
    for line, row in enumerate(rows):
        values = np.array([value for _, value in row.differences])
        heights = line + HEIGHTS[np.arange(len(values)) % len(HEIGHTS)]
        if titled:
            for number, (subject, value) in enumerate(row.differences):
                name = f"{metric}-{line}-{number}"
                axis.plot(value, heights[number], ".", color="0.4", alpha=0.45, gid=name)
                titles[name] = f"{subject}: {value:+.4g}"
        else:
            axis.plot(values, heights, ".", color="0.4", alpha=0.45)
        axis.plot([row.low, row.high], [line, line], color="#0550ae", lw=2.5)
        axis.plot(row.difference, line, "o", color="#0550ae", gid=f"{metric}-{line}")
        titles[f"{metric}-{line}"] = f"{row.set}: {row.contestant} - {row.baseline}: {' '.join(cells(row)[7:9])}"
    several = len({row.contestant for row in rows}) > 1
    labels = [f"{row.set}: {row.contestant}" if several else row.set for row in rows]
    axis.set_yticks(range(len(rows)), map(drawable, labels), parse_math=False)
    axis.set(xlabel="difference", ylim=(len(rows) - 0.5, -0.5))
    axis.grid(axis="x", alpha=0.25)
    return inline_svg(figure, titles, f"Paired differences of {metric}")
