"""The summary as one self-contained HTML page: the text of ``summary.md`` and the figures."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from html import escape, unescape
from pathlib import Path

from brainuad._version import __version__
from brainuad.files import write_text

_CSP = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 84rem; padding: 0 1rem; }
.scroll { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .55rem; border-bottom: 1px solid #8885; text-align: right; }
th:first-child, td:first-child { text-align: left; white-space: nowrap; }
figure { margin: 1rem 0; } img, svg { max-width: 100%; height: auto; background: #fff; } figcaption { font-size: 13px; }
@media print { tr, figure { break-inside: avoid; } .scroll { overflow: visible; } }
"""


def write_page(
    path: Path, markdown: str, pictures: Iterable[Path] = (), drawings: Iterable[tuple[str, str]] = ()
) -> None:
    """Write one of this package's Markdown pages as HTML, with its figures below it.

    Args:
        path: The page.
        markdown: Its text, which begins with a heading.
        pictures: PNG files.
        drawings: Captions and ``<svg>`` elements.

    Raises:
        InputError: It cannot be written.
    """
    title = markdown.partition("\n")[0].lstrip("# ")
    figures = [(picture.stem, _image(picture)) for picture in pictures] + list(drawings)
    head = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_CSP}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="generator" content="brainuad {__version__}">\n'
        f"<title>{escape(title)} · brainuad</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
    )
    shown = [f"<figure>{figure}<figcaption>{escape(name)}</figcaption></figure>" for name, figure in figures]
    body = "\n".join([as_html(markdown), *shown])
    write_text(path, f"{head}{body}\n</main>\n</body>\n</html>\n")


def _image(picture: Path) -> str:
    data = base64.b64encode(picture.read_bytes()).decode("ascii")
    return f'<img alt="{escape(picture.stem)}" src="data:image/png;base64,{data}">'


def as_html(markdown: str) -> str:
    """Return Markdown as HTML: headings, lists, tables, paragraphs, ``code`` and **bold**; our pages use no more."""
    return "\n".join(_block(block) for block in re.split(r"\n{2,}", markdown.strip()))


def _block(block: str) -> str:
    lines = block.split("\n")
    if heading := re.fullmatch(r"(#+) (.+)", block):
        level = len(heading[1])
        return f"<h{level}>{_inline(heading[2])}</h{level}>"
    if all(line.startswith("- ") for line in lines):
        return "<ul>" + "".join(f"<li>{_inline(line[2:])}</li>" for line in lines) + "</ul>"
    if all(line.startswith("|") for line in lines) and len(lines) > 1:
        head, _, *rows = ([_inline(cell.strip()) for cell in _cells(line)] for line in lines)
        names = "".join(f'<th scope="col">{cell}</th>' for cell in head)
        body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
        return f'<div class="scroll"><table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>'
    return f"<p>{_inline(' '.join(lines))}</p>"


def _cells(line: str) -> list[str]:
    """Return the cells of a table row; a bar within a cell is escaped."""
    return [cell.replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]


def _inline(text: str) -> str:
    safe = escape(unescape(text))
    safe = re.sub(r"`([^`]+)`", r"<code>\1</code>", safe)
    return re.sub(r"\*\*([^*]+)\*\*", r"<b>\1</b>", safe)
