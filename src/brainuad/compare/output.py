"""Write comparisons as a table on the screen, as CSV, as Markdown and as a page with a figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from brainuad._version import __version__
from brainuad.compare.differences import Comparison, Comparisons
from brainuad.compare.runs import Run
from brainuad.evaluation.statistics import EXACT_UP_TO, RESAMPLES
from brainuad.files import markdown_table, write_text

HEADINGS = ("set", "metric", "contestant", "baseline", "subjects", "mean", "baseline mean", "difference",
            "95 % interval", "larger / smaller", "p", "p (Holm)")  # fmt: skip
CSP = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
PLOT, ROW, LETTER = 480, 30, 6.6  # width of the plot, height of a row, width of a letter
SPREAD = (0, 4, -4, 2, -2, 5, -5, 3, -3)  # vertical offsets of the dots, in turn


def method(comparisons: Comparisons) -> str:
    """Return a paragraph that describes the statistics."""
    count = len(comparisons.rows)
    return (
        "Differences are contestant minus baseline within each case, averaged over a subject's cases and over "
        "subjects. Intervals: 95 %, "
        f"BCa bootstrap over subjects ({RESAMPLES:,} draws). p: two-sided paired permutation test, exact up to "
        f"{EXACT_UP_TO} subjects, {RESAMPLES:,} exchanges beyond. p (Holm): adjusted for the {count} "
        f"comparison{'s' * (count != 1)} shown. Real and simulated sets are never pooled."
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
    write_text(output / "compare.md", _markdown(runs, comparisons, split, space))
    write_text(output / "compare.html", _page(runs, comparisons, split, space))
    return output / "compare.html"


def _markdown(runs: Sequence[Run], comparisons: Comparisons, split: str, space: str) -> str:
    shown = [[cell.replace("<", "&lt;") for cell in cells(row)] for row in comparisons.rows]
    parts = [
        "# Comparison",
        f"Split {split}, {space} space. " + method(comparisons),
        "\n".join(f"- {run.name}: `{run.folder}`" for run in runs),
        "\n".join(f"- Warning: {text}" for text in comparisons.warnings),
        markdown_table(HEADINGS, shown),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _page(runs: Sequence[Run], comparisons: Comparisons, split: str, space: str) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("brainuad.compare", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    by_metric: dict[str, list[Comparison]] = {}
    for row in comparisons.rows:
        by_metric.setdefault(row.metric, []).append(row)
    return environment.get_template("compare.html").render(
        version=__version__,
        csp=CSP,
        method=method(comparisons),
        runs=runs,
        warnings=comparisons.warnings,
        split=split,
        space=space,
        headings=HEADINGS,
        rows=[(cells(row), row.p_holm < 0.05) for row in comparisons.rows],
        figures=[_figure(metric, rows) for metric, rows in by_metric.items()],
    )


def _figure(metric: str, rows: Sequence[Comparison]) -> dict[str, Any]:
    """Return the coordinates of a figure of paired differences, in units of the drawing."""
    ends = [value for row in rows for value in (row.low, row.high) if not math.isnan(value)]
    every = [0.0, *ends, *(value for row in rows for _, value in row.differences)]
    ticks = _round_ticks(min(every), max(every))
    low, high = min(min(every), ticks[0]), max(max(every), ticks[-1])

    several = len({row.contestant for row in rows}) > 1
    labels = [f"{row.set}: {row.contestant}" if several else row.set for row in rows]
    left = 24 + math.ceil(LETTER * max(map(len, labels)))

    def place(value: float) -> float:
        return round(left + PLOT * (value - low) / (high - low), 2)

    lines = []
    for index, (row, label) in enumerate(zip(rows, labels, strict=True)):
        y = ROW * (index + 0.5) + 8
        dots = [
            (place(value), y + SPREAD[i % len(SPREAD)], f"{case}: {value:+.4g}")
            for i, (case, value) in enumerate(row.differences)
        ]
        interval = None if math.isnan(row.low) else (place(row.low), place(row.high))
        text = f"{row.set}: {row.contestant} - {row.baseline}: {' '.join(cells(row)[7:9])}"
        mean = place(row.difference)
        lines.append({"label": label, "y": y, "dots": dots, "mean": mean, "interval": interval, "text": text})
    return {
        "metric": metric,
        "width": left + PLOT + 40,
        "height": ROW * len(rows) + 44,
        "zero": place(0),
        "ticks": [(place(tick), f"{tick:+g}" if tick else "0") for tick in ticks],
        "lines": lines,
    }


def _round_ticks(low: float, high: float) -> list[float]:
    """Return round numbers from at most ``low`` to at least ``high``, about five."""
    if low == high:
        low, high = low - 0.5, high + 0.5
    reach = high - low
    power = 10.0 ** math.floor(math.log10(reach / 4))
    step = next(step for factor in (1, 2, 5, 10) if reach / (step := factor * power) <= 5)
    indices = np.arange(math.floor(low / step), math.ceil(high / step) + 1)
    return [float(f"{index * step:.6g}") for index in indices]
