"""The report: one HTML page that opens from disk, with a viewer, tables and pictures, and needs no network."""

from __future__ import annotations

import base64
import gzip
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from brainuad._version import __version__
from brainuad.errors import InputError
from brainuad.files import write_text
from brainuad.record import FEW_HEALTHY, Point, to_json
from brainuad.report.display import FINEST, Display, encode, read_display
from brainuad.report.histogram import histogram
from brainuad.report.records import Records, Row, Scored, read_records
from brainuad.report.words import about, colours_of, facts_of, healthy_words, scale_words, steps

if TYPE_CHECKING:
    from brainuad.report.montage import Overlay

EMBEDDED_BYTES = 30_000_000  # of volumes and pictures in one page; above, every scan has a page of its own
MOST_PANELS = 12  # findings that are printed with a picture of their own
CSP = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "connect-src 'none'; base-uri 'none'; form-action 'none'"
)


@dataclass(frozen=True)
class _View:
    """One scan as the templates show it: ``payload`` is what the viewer draws, if it can; ``href`` leads to it."""

    id: str
    row: Row
    warnings: tuple[str, ...] = ()
    montage: str = ""
    panels: str = ""
    alt: str = ""
    words: str = ""
    healthy: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    payload: dict[str, Any] | None = None
    href: str = ""

    @property
    def size(self) -> int:
        layers = self.payload["layers"].values() if self.payload else ()
        return len(self.montage) + len(self.panels) + sum(map(len, layers))

    def remarks(self, said: Sequence[str]) -> list[str]:
        """Return what the table of scans says of it, without the warnings that were said of all scans."""
        return [text for text in (self.row.message, *self.warnings) if text and text not in said]


def build_report(folder: str | Path, *, embedded_bytes: int = EMBEDDED_BYTES) -> Path:
    """Write ``report.html`` into a folder of scored scans, from the files in it.

    Args:
        folder: What ``brainuad score`` wrote.
        embedded_bytes: Scans are embedded in the page up to this size; if they are larger together, every scan
            gets a page beside its JSON file, and ``report.html`` links to them.

    Returns:
        The path of the page.

    Raises:
        InputError: Nothing was scored there, or it cannot be written to.
    """
    records = read_records(folder)
    target = records.folder / "report.html"
    lines: list[_View] = []  # without what is large
    embedded: list[_View] = []
    linked = False
    for number, row in enumerate(records.rows):
        view = _view(row, f"scan-{number}")
        embedded.append(view)
        linked = linked or (sum(v.size for v in embedded) > embedded_bytes and len(records.rows) > 1)
        if linked:
            for waiting in embedded:
                _write_own_page(waiting, records)
            embedded.clear()
        lines.append(replace(view, montage="", panels="", payload=None))
    for place, line in enumerate(lines):
        if (scored := line.row.scored) is not None:
            own = quote(_own_page(scored, records.folder).relative_to(records.folder).as_posix())
            lines[place] = replace(line, href=f"./{own}" if linked else f"#{line.id}")
    write_text(target, _render(records, embedded, lines))
    return target


def _write_own_page(view: _View, records: Records) -> None:
    if view.row.scored is None:
        return
    page = _own_page(view.row.scored, records.folder)
    up = len(page.relative_to(records.folder).parents) - 1
    alone = replace(records, rows=[view.row], notes=[])
    write_text(page, _render(alone, [view], [], back="../" * up + "report.html"))


def _own_page(scored: Scored, folder: Path) -> Path:
    page = scored.sidecar.with_suffix(".html")
    return page if page != folder / "report.html" else page.with_name("report_scan.html")


def _common(lines: Sequence[_View]) -> list[str]:
    """Return the warnings that all scans share, which would hide the others if each repeated them."""
    shared = [line.warnings for line in lines if line.row.scored]
    return [text for text in shared[0] if all(text in other for other in shared)] if len(shared) > 1 else []


def _render(records: Records, views: Sequence[_View], lines: Sequence[_View], *, back: str = "") -> str:
    cohort = len(lines) > 1
    shown = [view for view in views if view.row.scored or not cohort]
    payloads = {view.id: view.payload for view in shown if view.payload}
    done = [(row.name, row.record.score.value) for row in records.rows if row.record]
    return _environment().get_template("page.html").render(
        title=f"{len(lines)} scans" if cohort else records.rows[0].name,
        about=about(records),
        csp=CSP,
        version=__version__,
        style=_asset("style.css"),
        script=_asset("page.js"),
        viewer=_asset("viewer.js"),
        niivue=_niivue() if payloads else "",
        notes=records.notes,
        back=back,
        cohort=cohort,
        counts=Counter(line.row.status for line in lines),
        histogram=Markup(histogram(done, records.healthy)) if cohort else "",
        healthy=bool(records.healthy),
        common=_common(lines),
        lines=lines,
        scans=shown,
        payloads=payloads,
        finest=FINEST,
    )  # fmt: skip


def _view(row: Row, id: str) -> _View:
    scored = row.scored
    if scored is None:
        return _View(id, row)
    record = scored.record
    known = to_json(record)
    facts = tuple(facts_of({key: known[key] for key in known if key not in ("findings", "warnings")}))
    try:
        display = read_display(scored)
    except InputError as error:
        row = replace(row, status="damaged", message=str(error))
        healthy = healthy_words(record.calibration)
        return _View(id, row, tuple(record.warnings), healthy=healthy, facts=facts)
    words, colours = scale_words(record.calibration), colours_of(record)
    shown = "scan, reconstruction" if "reconstruction" in display.volumes else "scan"
    alt = f"Axial slices of {row.name}: {shown} and anomaly map. {len(record.findings)} findings."
    payload = {
        "name": row.name,
        "layers": encode(display, colours["first"] or 0.0),
        "rare": record.rare,
        "scale": colours,
        "steps": steps(record.calibration),
        "words": words,
    }
    montage = _montage(row, scored, display)
    warnings = (*record.warnings, *display.notes)
    panels = _panels(scored, display)
    return _View(id, row, warnings, montage, panels, alt, words, healthy_words(record.calibration), facts, payload)


def _montage(row: Row, scored: Scored, display: Display) -> str:
    """Return the picture as a data URI: the one that was written, or one drawn here."""
    path = scored.outputs.get("montage")
    try:
        data = path.read_bytes() if path else b""
    except OSError:
        data = b""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _data_uri(data)
    from brainuad.report.montage import montage  # matplotlib is slow to import

    volumes = display.volumes
    figure = montage(
        volumes.get("scan", volumes.get("reconstruction", volumes["anomaly"])),
        volumes.get("reconstruction"),
        [_overlay("anomaly map", scored, display)],
        volumes["brain"],
        volumes.get("lesion"),
        title=row.name,
        scale_meaning="red to yellow: rarer and rarer in healthy brains",
        height=lambda z: f"scanner z = {display.affine[2] @ [0, 0, z, 1]:.0f} mm",
    )
    return _data_uri(figure.png())


def _overlay(name: str, scored: Scored, display: Display) -> Overlay:
    from brainuad.report.montage import Overlay  # matplotlib is slow to import

    colours = colours_of(scored.record)
    return Overlay(name, display.volumes["anomaly"], colours["first"] or 0.0, colours["full"] or 1.0)


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _panels(scored: Scored, display: Display) -> str:
    """Return a picture of the findings that stand first, one a panel, as a data URI; "" where there is none."""
    volumes, findings = display.volumes, scored.record.findings
    shown = ([finding for finding in findings if finding.rare] or findings)[:MOST_PANELS]
    if "scan" not in volumes or "findings" not in volumes or not shown:
        return ""
    from brainuad.report.montage import finding_panels  # matplotlib is slow to import

    last = volumes["scan"].shape[2] - 1
    wanted = []
    for finding in shown:
        height = finding.centre_mm[2]
        index = min(max(round((height - display.affine[2, 3]) / display.voxel), 0), last)
        wanted.append((finding.label, index, f"scanner z = {height:.0f} mm"))
    return _data_uri(finding_panels(volumes["scan"], _overlay("", scored, display), volumes["findings"], wanted).png())


def _millimetres(point: Point) -> str:
    return ", ".join(str(round(value)) for value in point).replace("-", "−")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("brainuad.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["millimetres"] = _millimetres
    # a warning that is of the model, not of the scan, is a footnote
    environment.tests["standing"] = lambda text: text.startswith(FEW_HEALTHY)
    return environment


def _asset(name: str) -> Markup:
    return _inline((files("brainuad.report") / "templates" / name).read_text(encoding="utf-8"))


def _niivue() -> Markup:
    folder = files("brainuad.assets") / "niivue"
    licence = (folder / "LICENSE").read_text(encoding="utf-8")
    code = gzip.decompress((folder / "niivue.umd.js.gz").read_bytes()).decode()
    return _inline(f"/* NiiVue 0.69.0\n{licence}*/\n{code}")


def _inline(text: str) -> Markup:
    """Mark our own code as such, after making sure that it cannot end its element early."""
    if any(end in text.lower() for end in ("</script", "<!--")):
        raise ValueError("code to be inlined holds a tag")
    return Markup(text)
