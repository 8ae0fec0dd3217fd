from __future__ import annotations

from pathlib import Path

import pytest

from brainuad.files import markdown_table
from brainuad.study.html_page import as_html, write_page


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("## MS: 2 scans", "<h2>MS: 2 scans</h2>"),
        ("- `oracle`: best\n- **no** result", "<ul><li><code>oracle</code>: best</li><li><b>no</b> result</li></ul>"),
        ("a < b\nand &lt;c>", "<p>a &lt; b and &lt;c&gt;</p>"),
    ],
)
def test_what_pages_are_made_of(text: str, expected: str) -> None:
    assert as_html(text) == expected


def test_tables_keep_their_cells() -> None:
    made = as_html(markdown_table(["score", "n"], [["a|b", "1"], ["<i>", ""]]))
    assert made.count("<th ") == 2
    assert [cell.split("</td>")[0] for cell in made.split("<td>")[1:]] == ["a|b", "1", "&lt;i&gt;", ""]


def test_a_page_needs_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "froc.png").write_bytes(b"picture")
    write_page(tmp_path / "summary.html", "# Evaluation of <m>\n\ntext", [tmp_path / "froc.png"])
    page = (tmp_path / "summary.html").read_text(encoding="utf-8")
    assert "<title>Evaluation of &lt;m&gt; · brainuad</title>" in page
    assert 'src="data:image/png;base64,cGljdHVyZQ=="' in page
    assert "<h1>Evaluation of &lt;m&gt;</h1>\n<p>text</p>" in page
