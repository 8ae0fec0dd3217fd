"""Figures as inline drawings of a page."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def inline_svg(figure: Figure, titles: Mapping[str, str], summary: str) -> str:
    """Return a figure as an ``<svg>`` element, the same for the same figure, without rules, which hold for a page.

    Args:
        figure: The figure. Its texts stay texts.
        titles: What shows under the pointer, by the ``gid`` of an artist.
        summary: What the figure shows, for those who cannot see it.
    """
    from matplotlib import rc_context  # slow to import

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "brainuad"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=_NO_METADATA)
    file = buffer.getvalue()
    drawing = re.sub(r"<style.*?</style>", "", file[file.index("<svg") :], flags=re.DOTALL)

    def titled(group: re.Match[str]) -> str:
        return group[0] + (f"<title>{escape(titles[group[1]])}</title>" if group[1] in titles else "")

    drawing = re.sub(r'<g id="([^"]+)">', titled, drawing)
    return drawing.replace("<svg", f'<svg role="img" aria-label="{escape(summary)}"', 1)
